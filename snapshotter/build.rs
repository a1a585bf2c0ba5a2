//! Generates the messages and services of containerd's API from `proto/`.

/// Services that are called or served; their types come along.
const SERVICES: &[&str] = &["snapshots", "content", "images", "leases", "diff", "events"];

fn main() -> std::io::Result<()> {
    let api = "proto/github.com/containerd/containerd/api/services";
    let protos: Vec<String> = SERVICES.iter().map(|name| format!("{api}/{name}/v1/{name}.proto")).collect();
    tonic_prost_build::configure().include_file("containerd.rs").compile_protos(&protos, &["proto".to_owned()])
}
