//! Messages and services of containerd's API, generated from its own definitions in `proto/`.

#![expect(missing_docs, clippy::allow_attributes, clippy::allow_attributes_without_reason, reason = "generated")]

tonic::include_proto!("containerd");
