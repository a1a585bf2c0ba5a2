//! An image's config: what of it counts here, and with which layers it goes.

use std::collections::HashMap;

use lazo_format::{Algorithm, Digest};
use oci_spec::image::{ImageManifest, Platform as OciPlatform};

use crate::{
    error::{Error, Result},
    json::{Json, Object, Value},
};

/// What `rootfs.type` may say.
const LAYERS: &str = "layers";

/// An image's config, parsed. What it says of the system and the processor may be missing, and so may its layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    what: String,
    os: String,
    architecture: String,
    variant: String,
    diff_ids: Vec<Digest>,
    labels: HashMap<String, String>,
}

impl Config {
    /// Parses a config. `name`, such as its digest, names it in errors.
    ///
    /// Every field that the image specification knows may be absent or `null`, but has the type that the specification
    /// gives it: containerd and umoci refuse an image whose `Env` is no list or whose `created` is no time.
    ///
    /// # Errors
    /// When it is no JSON object, a field has another type, or a diffID is no SHA-256 digest.
    pub fn parse(name: impl std::fmt::Display, bytes: &[u8]) -> Result<Self> {
        let what = format!("config {name}");
        let json = Json::new(&what, bytes);
        let root = json.root()?;
        if root.is_null() {
            return Err(root.error("it is null, and no object"));
        }
        let mut image = root.object(&[
            "created",
            "author",
            "architecture",
            "os",
            "os.version",
            "os.features",
            "variant",
            "config",
            "rootfs",
            "history",
        ])?;
        image.read("created", |value| time(&value))?;
        for text in ["author", "os.version"] {
            image.read(text, |value| value.text())?;
        }
        image.read("os.features", Value::texts)?;
        image.read("history", history)?;
        Ok(Self {
            os: image.read("os", |value| value.text())?,
            architecture: image.read("architecture", |value| value.text())?,
            variant: image.read("variant", |value| value.text())?,
            diff_ids: image.read("rootfs", diff_ids)?,
            labels: image.read("config", execution)?,
            what: what.clone(),
        })
    }

    /// Operating system, architecture and variant, if it names the first two.
    #[must_use]
    pub fn platform(&self) -> Option<OciPlatform> {
        if self.os.is_empty() || self.architecture.is_empty() {
            return None;
        }
        let mut platform = OciPlatform::default();
        platform.set_os(self.os.as_str().into()).set_architecture(self.architecture.as_str().into());
        platform.set_variant(Some(self.variant.clone()).filter(|variant| !variant.is_empty()));
        Some(platform)
    }

    /// Labels of the image.
    #[must_use]
    pub fn labels(&self) -> &HashMap<String, String> {
        &self.labels
    }

    /// Digests of the uncompressed layers, lowest first, without regard to the manifest.
    #[must_use]
    pub fn diff_ids(&self) -> &[Digest] {
        &self.diff_ids
    }

    /// The diffIDs of this manifest's layers, one for each.
    ///
    /// An image whose config lacks them is refused, as containerd and umoci do: they are the names of its snapshots.
    ///
    /// # Errors
    /// When there are more or fewer than layers.
    pub fn diff_ids_for(&self, manifest: &ImageManifest) -> Result<&[Digest]> {
        let (layers, ids) = (manifest.layers().len(), self.diff_ids.len());
        if layers == ids {
            return Ok(&self.diff_ids);
        }
        let layers = if layers == 1 { "1 layer".to_owned() } else { format!("{layers} layers") };
        let reason = match ids {
            0 => format!("rootfs.diff_ids is missing or empty, but the manifest has {layers}"),
            _ => format!("rootfs.diff_ids has {ids} entries, but the manifest {layers}"),
        };
        Err(Error::invalid(&self.what, format_args!("{reason}; no runtime can unpack this image, build it again")))
    }
}

fn diff_ids(rootfs: Value<'_>) -> Result<Vec<Digest>> {
    let mut rootfs = rootfs.object(&["type", "diff_ids"])?;
    let kind = rootfs.read("type", |value| value.text())?;
    if !kind.is_empty() && kind != LAYERS {
        return Err(rootfs.error(format_args!("its type is {kind:?}, and not {LAYERS:?}")));
    }
    let digest = |value: Value<'_>| match value.text()?.parse::<Digest>() {
        Ok(digest) if digest.algorithm() == Algorithm::Sha256 => Ok(digest),
        Ok(_) => Err(value.error("it is no SHA-256 digest, the only kind that runtimes compute")),
        Err(error) => Err(value.error(error)),
    };
    rootfs.read("diff_ids", |value| value.list()?.into_iter().map(digest).collect())
}

/// The part that says how to start a process. Only its labels count here; of the rest, that runtimes can read it.
fn execution(config: Value<'_>) -> Result<HashMap<String, String>> {
    let mut config = config.object(&[
        "User",
        "ExposedPorts",
        "Env",
        "Entrypoint",
        "Cmd",
        "Volumes",
        "WorkingDir",
        "Labels",
        "StopSignal",
    ])?;
    for text in ["User", "WorkingDir", "StopSignal"] {
        config.read(text, |value| value.text())?;
    }
    for texts in ["Env", "Entrypoint", "Cmd"] {
        config.read(texts, Value::texts)?;
    }
    for set in ["ExposedPorts", "Volumes"] {
        let members = config.read(set, Value::map)?;
        members.into_values().try_for_each(|member| member.object(&[]).map(drop))?;
    }
    config.read("Labels", Value::text_map)
}

fn history(history: Value<'_>) -> Result<()> {
    for entry in history.list()? {
        let mut entry: Object<'_> = entry.object(&["created", "created_by", "author", "comment", "empty_layer"])?;
        entry.read("created", |value| time(&value))?;
        for text in ["created_by", "author", "comment"] {
            entry.read(text, |value| value.text())?;
        }
        entry.read("empty_layer", |value| value.boolean())?;
    }
    Ok(())
}

/// A time as RFC 3339 writes it, or `null`.
fn time(value: &Value<'_>) -> Result<()> {
    if value.is_null() || is_time(&value.text()?) {
        return Ok(());
    }
    Err(value.error("it is no time such as 2006-01-02T15:04:05Z"))
}

/// `YYYY-MM-DDThh:mm:ss[.fraction](Z|±hh:mm)`.
fn is_time(text: &str) -> bool {
    let Some((date, rest)) = text.split_once('T') else { return false };
    let Some((clock, zone)) = rest.find(['Z', '+', '-']).map(|place| rest.split_at(place)) else { return false };
    let (clock, fraction) = clock.split_once(['.', ',']).map_or((clock, None), |(clock, rest)| (clock, Some(rest)));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let Some([year, month, day]) = numbers(date, '-', [4, 2, 2]) else { return false };
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => 0,
    };
    let on_clock = |hour: u32, minute: u32| hour < 24 && minute < 60;
    let in_zone = zone == "Z"
        || !zone.starts_with('Z')
            && numbers(&zone[1..], ':', [2, 2]).is_some_and(|[hour, minute]| on_clock(hour, minute));
    (1..=days).contains(&day)
        && numbers(clock, ':', [2, 2, 2]).is_some_and(|[hour, minute, second]| on_clock(hour, minute) && second < 60)
        && fraction.is_none_or(digits)
        && in_zone
}

/// Numbers of just so many digits each, with `between` between them.
fn numbers<const N: usize>(text: &str, between: char, widths: [usize; N]) -> Option<[u32; N]> {
    let parts: Vec<&str> = text.split(between).collect();
    let mut numbers = [0; N];
    if parts.len() != N {
        return None;
    }
    for ((number, part), width) in numbers.iter_mut().zip(parts).zip(widths) {
        let plain = part.len() == width && part.bytes().all(|b| b.is_ascii_digit());
        *number = plain.then(|| part.parse().ok())??;
    }
    Some(numbers)
}

#[cfg(test)]
mod tests;
