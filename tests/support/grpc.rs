//! A gRPC client written in Go, as the kubelet and containerd are, at its own idea of what `:authority` says.

use std::{
    fmt::Write as _,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::OnceLock,
};

use super::{run_directory, stdout_of};

/// A process that calls over one connection. It ends with its input.
pub(crate) struct GoClient {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl GoClient {
    /// `authority`: what it says in place of the socket's path.
    pub(crate) fn new(socket: &Path, authority: Option<&str>) -> Self {
        let mut command = Command::new(program());
        command.arg(socket).args(authority).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("the client");
        let input = process.stdin.take().expect("its input");
        let output = BufReader::new(process.stdout.take().expect("its output"));
        Self { process, input, output }
    }

    /// The answer, or a status and what is wrong.
    pub(crate) fn call<A: prost::Message, B: prost::Message + Default>(
        &mut self,
        method: &str,
        request: &A,
    ) -> Result<B, String> {
        let mut line = format!("{method} ");
        request.encode_to_vec().iter().for_each(|byte| write!(line, "{byte:02x}").expect("room in a string"));
        writeln!(self.input, "{line}").expect("a client that listens");
        line.clear();
        self.output.read_line(&mut line).expect("an answer");
        let Some(hex) = line.strip_prefix("OK ").map(str::trim_end) else { return Err(line) };
        let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex"));
        Ok(B::decode(&*bytes.collect::<Vec<u8>>()).expect("a message"))
    }
}

impl Drop for GoClient {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Built at need, from Debian's sources of grpc-go.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target directory").join("judges");
        std::fs::create_dir_all(&target).expect("a directory for the client");
        let program = run_directory().join("go-grpc");
        let mut build = Command::new("go");
        build.args(["build", "-o"]).arg(&program).arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/grpc.go"));
        build.env("GOCACHE", target.join("go-cache")).env("GO111MODULE", "off").env("GOPATH", "/usr/share/gocode");
        stdout_of(&mut build);
        program
    })
}
