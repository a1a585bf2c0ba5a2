//! Holds what must outlive the worker, and keeps a worker running.
