//! Makes and ends mounts, in a process of its own.
