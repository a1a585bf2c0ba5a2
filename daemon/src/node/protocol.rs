//! Requests and answers of the control API.
