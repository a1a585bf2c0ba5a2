//! Parts of the tests.
