//! The walkers and mounters that benches/run.py times, so that no interpreter stands between a figure and what it
//! measures. Each prints one JSON object.

#[path = "../tests/support/erofs_mount.rs"]
mod erofs_mount;
#[expect(dead_code, reason = "the tests use all of it")]
#[path = "../tests/support/faults.rs"]
mod faults;
#[expect(dead_code, reason = "the tests use all of it")]
#[path = "../tests/support/random.rs"]
mod random;
#[path = "rig/snapshot.rs"]
mod snapshot;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead as _, Read as _},
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lazo_format::{BlobIndex, ChunkDecoder, ChunkIndex, Index};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat};
use serde_json::{Value, json};

const USAGE: &str = "rig stat DIR | read DIR | random DIR READERS READS | mount LAZO IMAGE DIR [OPTION...] \
                     | unpack LAYOUT TAG DIR | erofs DIR MOUNTPOINT | proxy ADDRESS UPSTREAM \
                     | snapshot CONTAINERD NAMESPACE SNAPSHOTTER PARENT KEY DIR";
/// What `read` asks for at once: as coreutils' cat and GNU tar do, roughly.
const READ_SIZE: usize = 128 << 10;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let start = Instant::now();
    let mut result = match args[..] {
        ["stat", dir] => walk(dir, None)?,
        ["read", dir] => walk(dir, Some(&mut vec![0; READ_SIZE]))?,
        ["random", dir, readers, reads] => random(Path::new(dir), readers.parse()?, reads.parse()?)?,
        ["mount", lazo, image, dir, ref options @ ..] => mount(lazo, image, dir, options)?,
        ["unpack", layout, tag, dir] => unpack(Path::new(layout), tag, Path::new(dir))?,
        ["erofs", dir, at] => return erofs(Path::new(dir), Path::new(at)),
        ["proxy", address, upstream] => return proxy(address, upstream),
        ["snapshot", socket, namespace, snapshotter, parent, key, dir] => {
            snapshot::create(socket, namespace, snapshotter, parent, key, Path::new(dir))?
        }
        _ => bail!("usage: {USAGE}"),
    };
    result["seconds"] = start.elapsed().as_secs_f64().into();
    println!("{result}");
    Ok(())
}

const OPEN: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// Lists and stats everything below a directory, depth first, as find and tar do; with a buffer, reads every regular file
/// as well.
fn walk(root: &str, buffer: Option<&mut Vec<u8>>) -> Result<Value> {
    let mut walk = Walk { entries: 0, bytes: 0, buffer };
    walk.visit(&openat(CWD, root, OPEN | OFlags::DIRECTORY, Mode::empty())?)?;
    Ok(json!({ "entries": walk.entries, "bytes": walk.bytes }))
}

struct Walk<'a> {
    entries: u64,
    bytes: u64,
    buffer: Option<&'a mut Vec<u8>>,
}

impl Walk<'_> {
    fn visit(&mut self, directory: &OwnedFd) -> Result<()> {
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            self.entries += 1;
            match (FileType::from_raw_mode(stat.st_mode), &mut self.buffer) {
                (FileType::Directory, _) => {
                    self.visit(&openat(directory, name, OPEN | OFlags::DIRECTORY, Mode::empty())?)?;
                }
                (FileType::RegularFile, Some(buffer)) => {
                    let file = openat(directory, name, OPEN, Mode::empty())?;
                    self.bytes += read_all(&file, buffer).with_context(|| format!("{name:?}"))?;
                }
                _ => (),
            }
        }
        Ok(())
    }
}

fn read_all(file: &OwnedFd, buffer: &mut [u8]) -> Result<u64> {
    let mut bytes = 0;
    loop {
        match rustix::io::read(file, &mut *buffer)? {
            0 => return Ok(bytes),
            length => bytes += length as u64,
        }
    }
}

/// Many readers at a time, each of which reads up to 64 KiB at so many random places of random files of at least 16 KiB.
fn random(root: &Path, readers: u64, reads: u64) -> Result<Value> {
    const LARGEST: u32 = 64 << 10;
    const LEAST: u64 = 16 << 10;
    let (mut files, mut pending) = (Vec::new(), vec![root.to_owned()]);
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory)? {
            let (entry, metadata) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))?;
            if metadata.is_dir() {
                pending.push(entry);
            } else if metadata.is_file() && metadata.len() >= LEAST {
                files.push((entry, metadata.len()));
            }
        }
    }
    files.sort();
    let read = |seed: u64| -> Result<u64> {
        let (mut random, mut buffer, mut bytes) = (random::Random::new(seed), vec![0; LARGEST as usize], 0);
        for _ in 0..reads {
            let (path, size) = random.pick(&files);
            let offset = random.below(*size);
            let length = (1 + random.below(LARGEST.into())).min(size - offset);
            File::open(path)?.read_exact_at(&mut buffer[..usize::try_from(length)?], offset)?;
            bytes += length;
        }
        Ok(bytes)
    };
    let start = Instant::now();
    let bytes = std::thread::scope(|scope| {
        let read = &read;
        let threads: Vec<_> = (0..readers).map(|seed| scope.spawn(move || read(seed))).collect();
        let sums = threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a reader panicked"))?);
        sums.sum::<Result<u64>>()
    })?;
    Ok(json!({ "files": files.len(), "bytes": bytes, "reading": start.elapsed().as_secs_f64() }))
}

/// `lazo mount` until the first listing of its root.
fn mount(lazo: &str, image: &str, dir: &str, options: &[&str]) -> Result<Value> {
    let status = Command::new(lazo).args(["mount", image, dir]).args(options).status()?;
    ensure!(status.success(), "lazo mount {image}: {status}");
    let entries = fs::read_dir(dir)?.count();
    ensure!(entries > 0, "{dir} is empty");
    Ok(json!({ "entries": entries }))
}

/// A lazo image's bootstrap and its blobs, decompressed, as `bootstrap`, `0000`, `0001`, ... in a directory.
fn unpack(layout: &Path, tag: &str, out: &Path) -> Result<Value> {
    let blob = |digest: &Value| layout.join("blobs").join(digest.as_str().unwrap_or_default().replace(':', "/"));
    let parse = |path: PathBuf| -> Result<Value> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
    let root = parse(layout.join("index.json"))?;
    let manifests = root["manifests"].as_array().context("no manifests")?;
    let named = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == tag;
    let manifest = parse(blob(&manifests.iter().find(named).context("no such tag")?["digest"]))?;
    let layers = manifest["layers"].as_array().context("no layers")?;
    let (last, blobs) = layers.split_last().context("no layers")?;

    let mut members = BTreeMap::new();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(File::open(blob(&last["digest"]))?));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        members.insert(entry.path()?.into_owned(), bytes);
    }
    fs::write(out.join("bootstrap"), &members[Path::new("image/bootstrap")])?;
    let index = Index::parse(&members[Path::new("image/index")][..])?;
    let (mut decoder, mut data, mut device_bytes) = (ChunkDecoder::new()?, Vec::new(), 0);
    for (number, layer) in blobs.iter().enumerate() {
        let (stored, device) = (File::open(blob(&layer["digest"]))?, File::create(out.join(format!("{number:04}")))?);
        for chunk in index.blob(BlobIndex(u16::try_from(number)?))?.chunks() {
            let chunk = index.chunk(ChunkIndex(chunk))?;
            let mut bytes = vec![0; chunk.compressed_size as usize];
            stored.read_exact_at(&mut bytes, chunk.compressed_offset)?;
            decoder.decode(&chunk, &bytes, &mut data)?;
            device.write_all_at(&data, chunk.device_offset.0)?;
            device_bytes += data.len();
        }
    }
    Ok(json!({ "blobs": blobs.len(), "entries": index.header().entries, "device_bytes": device_bytes }))
}

/// Mounts what `unpack` made with the kernel's EROFS until stdin ends.
fn erofs(dir: &Path, at: &Path) -> Result<()> {
    let mut devices: Vec<PathBuf> = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    devices.retain(|path| !path.ends_with("bootstrap"));
    devices.sort();
    let mounted = erofs_mount::ErofsMount::new(&dir.join("bootstrap"), &devices, at).map_err(anyhow::Error::msg)?;
    println!("{}", json!({ "mounted": mounted.path() }));
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// A proxy at `address` before the server at `upstream`, until stdin ends. Each line of stdin is answered by one of stdout:
/// `latency MILLISECONDS`, `bandwidth BYTES_PER_SECOND`, `log`, which tells what there was since the last `log`.
fn proxy(address: &str, upstream: &str) -> Result<()> {
    let proxy = faults::Proxy::start_at(address.parse()?, upstream);
    println!("{}", json!({ "host": proxy.host() }));
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let answer = match line.split(' ').collect::<Vec<_>>()[..] {
            ["latency", milliseconds] => {
                proxy.set_latency(Duration::from_millis(milliseconds.parse()?));
                json!({})
            }
            ["bandwidth", bytes] => {
                proxy.set_bandwidth(bytes.parse()?);
                json!({})
            }
            ["log"] => {
                let log = proxy.log();
                proxy.clear_log();
                log.iter().map(exchange).collect()
            }
            _ => bail!("usage: {USAGE}"),
        };
        println!("{answer}");
    }
    Ok(())
}

fn exchange(exchange: &faults::Exchange) -> Value {
    json!({
        "method": exchange.method,
        "path": exchange.path,
        "first": exchange.range.as_ref().map(|range| range.start),
        "length": exchange.range.as_ref().map(|range| range.end - range.start),
        "status": exchange.status,
        "bytes": exchange.bytes,
        "data": exchange.brought_data(),
        "began": exchange.began.as_secs_f64(),
        "last": exchange.last.as_secs_f64(),
    })
}
