//! Other people's tar readers, as processes that are asked over pipes, and lazo's in the same words.
//!
//! Tests and the fuzz target `tar_judges` share this file.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use lazo_base::tar::{Fault, Member, Reader, Stream, kind};

/// Bytes of a member that are looked at: a sparse one may have 2^63.
const LOOKED: u64 = 1 << 20;

/// A reader in a process of its own. It ends with its input.
pub(crate) struct Judge(Child);

impl Judge {
    /// Go's `archive/tar`, built at need.
    pub(crate) fn go() -> Self {
        let place = target().join("judges");
        std::fs::create_dir_all(&place).expect("a directory for the judge");
        let program = place.join("tar-judge");
        let build = Command::new("go")
            .args(["build", "-o"])
            .arg(&program)
            .arg(source("judge.go"))
            .env("GOCACHE", place.join("go-cache"))
            .env("GO111MODULE", "off")
            .status()
            .expect("golang-go: run scripts/install-deps");
        assert!(build.success(), "the Go judge cannot be built");
        Self::start(&mut Command::new(program))
    }

    /// Python's `tarfile`.
    pub(crate) fn python() -> Self {
        Self::start(Command::new("python3").arg(source("judge.py")))
    }

    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a judge"))
    }

    /// A line a member, and then `end` or `refused`.
    pub(crate) fn ask(&mut self, archive: &[u8]) -> String {
        self.exchange(archive).expect("the judge has ended")
    }

    fn exchange(&mut self, archive: &[u8]) -> io::Result<String> {
        let input = self.0.stdin.as_mut().expect("a pipe");
        input.write_all(&u32::try_from(archive.len()).expect("an archive of less than 4 GiB").to_le_bytes())?;
        input.write_all(archive)?;
        input.flush()?;
        let output = self.0.stdout.as_mut().expect("a pipe");
        let mut length = [0; 4];
        output.read_exact(&mut length)?;
        let mut answer = vec![0; u32::from_le_bytes(length) as usize];
        output.read_exact(&mut answer)?;
        String::from_utf8(answer).map_err(io::Error::other)
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn source(name: &str) -> PathBuf {
    repository().join("base/tests/judges").join(name)
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from)
}

/// This crate lies directly below it, and so does the fuzz targets'.
fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a parent")
}

/// What lazo's reader makes of an archive, in the judges' words; `None` where it has bounds that they have not.
pub(crate) fn lazo(archive: &[u8]) -> Option<String> {
    let mut text = String::new();
    let mut reader = Reader::new(Stream(archive));
    loop {
        let member = match reader.next_member() {
            Ok(Some(member)) => member,
            Ok(None) => {
                text.push_str("end\n");
                return Some(text);
            }
            Err(error) if matches!(&error.fault, Fault::TooMuch { what, .. } if !what.contains("extended header")) => {
                return None;
            }
            // A judge that has looked at the beginning alone cannot know.
            Err(error) if matches!(error.fault, Fault::SparseData { size } if size > LOOKED) => return None,
            Err(error) => {
                writeln!(text, "refused {error}: {}", error.fault).expect("a string");
                return Some(text);
            }
        };
        match logical(&mut reader, &member) {
            Ok(data) => line(&mut text, &member, &data),
            Err(error) => {
                writeln!(text, "refused {error}").expect("a string");
                return Some(text);
            }
        }
    }
}

/// The beginning of a member's content, with its holes.
fn logical(reader: &mut impl Read, member: &Member) -> io::Result<Vec<u8>> {
    let length = member.size.min(LOOKED);
    let mut data = vec![0; usize::try_from(length).expect("a megabyte")];
    let whole = [(0, member.size)];
    for (offset, piece) in member.pieces.as_deref().unwrap_or(&whole) {
        if *offset < length {
            let end = (offset + piece).min(length);
            let range = usize::try_from(*offset).expect("small")..usize::try_from(end).expect("small");
            reader.read_exact(&mut data[range])?;
        }
    }
    Ok(data)
}

fn line(text: &mut String, member: &Member, data: &[u8]) {
    let Member { kind, name, link, size, mode, uid, gid, mtime, device, xattrs, .. } = member;
    if *kind == kind::PAX_GLOBAL {
        return writeln!(text, "{kind:02x} {}", hex(name)).expect("a string");
    }
    let mut crc = flate2::Crc::new();
    crc.update(data);
    let xattrs: Vec<String> = xattrs.iter().map(|(name, value)| format!("{}={}", hex(name), hex(value))).collect();
    let mut xattrs = xattrs;
    xattrs.sort();
    writeln!(
        text,
        "{kind:02x} {} link={} size={size} mode={mode} uid={uid} gid={gid} mtime={}.{:09} device={}:{} xattrs={} data={}:{:08x}",
        hex(name),
        hex(link),
        mtime.seconds,
        mtime.nanoseconds,
        device.0,
        device.1,
        xattrs.join(","),
        data.len(),
        crc.sum(),
    )
    .expect("a string");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string");
        text
    })
}
