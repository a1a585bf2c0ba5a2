//! Gives up rights that are not needed.
