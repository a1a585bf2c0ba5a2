//! Platforms: what an image is built for, and which one of an index suits.

use std::{fmt, str::FromStr};

use oci_spec::image::Platform as OciPlatform;

use crate::error::{Error, Result};

/// Operating systems in Go's words, so that a single word can be told from an architecture.
const SYSTEMS: [&str; 17] = [
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
    "zos",
];
/// Architectures in Go's words.
const ARCHITECTURES: [&str; 24] = [
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "armbe",
    "arm64",
    "arm64be",
    "ppc64",
    "ppc64le",
    "loong64",
    "mips",
    "mipsle",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "ppc",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
];

/// Operating system, architecture and variant, in Go's words (`linux/arm/v7`), spelled as containerd does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    os: String,
    architecture: String,
    /// CPU variant such as `v7`; `None` is the architecture's usual one.
    variant: Option<String>,
    /// An image for an older processor of the family will do where there is none for this one: 386 for amd64, arm for arm64.
    takes_kin: bool,
}

/// A variant as a number, `v8.1` being (8, 1), so that a CPU may run images for a lower one.
type Level = (u32, u32);

/// How well an image suits, higher being better: whether it is for this very architecture, then its variant.
pub(crate) type Rank = (bool, Level);

impl Platform {
    /// The platform this program was built for, with `linux` as the system. As in containerd, an image for an older
    /// processor of the family is taken where there is none for this one.
    #[must_use]
    pub fn host() -> Self {
        Self { takes_kin: true, ..Self::normalized("linux", std::env::consts::ARCH, None) }
    }

    /// One spelling for each platform: what containerd's `platforms.Normalize` does, and Rust's names beside Go's.
    fn normalized(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let (os, architecture) = (os.to_ascii_lowercase(), architecture.to_ascii_lowercase());
        let variant = variant.unwrap_or_default().to_ascii_lowercase();
        let os = match os.as_str() {
            "" => "linux",
            "macos" => "darwin",
            other => other,
        };
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386" | "i686" | "x86", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "8" | "v8") => ("arm64", ""),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("arm", "7") => ("arm", "v7"),
            ("arm", "8") => ("arm", "v8"),
            ("powerpc64", variant) => ("ppc64le", variant),
            ("loongarch64", variant) => ("loong64", variant),
            other => other,
        };
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: Some(variant.to_owned()).filter(|variant| !variant.is_empty()),
            takes_kin: false,
        }
    }

    /// The platform of an index's entry or a config.
    pub(crate) fn of(platform: &OciPlatform) -> Self {
        Self::normalized(
            &platform.os().to_string(),
            &platform.architecture().to_string(),
            platform.variant().as_deref(),
        )
    }

    /// Whether an image for `candidate` runs here.
    #[must_use]
    pub fn accepts(&self, candidate: &OciPlatform) -> bool {
        self.suits(candidate).is_some()
    }

    /// How well an image for `candidate` suits: `None` not at all, else higher is better.
    pub(crate) fn suits(&self, candidate: &OciPlatform) -> Option<Rank> {
        let candidate = Self::of(candidate);
        if candidate.os != self.os {
            return None;
        }
        if candidate.architecture == self.architecture {
            return match (self.level(), candidate.level()) {
                (Some(own), Some(other)) => (other <= own).then_some((true, other)),
                // Variants nobody ordered: equal, or not asked for.
                _ => (self.variant.is_none() || self.variant == candidate.variant).then_some((true, (0, 0))),
            };
        }
        match (self.architecture.as_str(), candidate.architecture.as_str()) {
            ("amd64", "386") if self.takes_kin => Some((false, (0, 0))),
            ("arm64", "arm") if self.takes_kin => candidate.level().filter(|l| *l <= (8, 0)).map(|l| (false, l)),
            _ => None,
        }
    }

    /// The variant's number, with each architecture's baseline where none is named.
    fn level(&self) -> Option<Level> {
        let Some(variant) = &self.variant else {
            return match self.architecture.as_str() {
                "amd64" => Some((1, 0)),
                "arm" => Some((7, 0)),
                "arm64" => Some((8, 0)),
                _ => None,
            };
        };
        let number = variant.strip_prefix('v')?;
        let (major, minor) = number.split_once('.').unwrap_or((number, "0"));
        Some((major.parse().ok()?, minor.parse().ok()?))
    }
}

/// `os/architecture[/variant]`, for messages, in one spelling for each platform.
#[must_use]
pub fn shown(platform: &OciPlatform) -> String {
    Platform::of(platform).to_string()
}

impl FromStr for Platform {
    type Err = Error;

    /// `OS/ARCHITECTURE[/VARIANT]`, or less: an architecture with or without its variant, for Linux; a system, for this
    /// machine's architecture.
    fn from_str(text: &str) -> Result<Self> {
        let part_ok = |p: &str| !p.is_empty() && p.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        let parts: Vec<&str> = text.split('/').collect();
        let unknown = || {
            Error::invalid(
                format_args!("platform {text:?}"),
                "expected OS/ARCHITECTURE[/VARIANT], for instance linux/amd64 or linux/arm/v7, or an architecture alone",
            )
        };
        if !parts.iter().all(|part| part_ok(part)) {
            return Err(unknown());
        }
        let for_linux = |architecture: &str, variant| {
            let platform = Self::normalized("linux", architecture, variant);
            Some(platform).filter(|platform| ARCHITECTURES.contains(&platform.architecture.as_str()))
        };
        match parts.as_slice() {
            [one] => {
                let system = Self::normalized(one, std::env::consts::ARCH, None);
                let system = Some(system).filter(|system| SYSTEMS.contains(&system.os.as_str()));
                system.or_else(|| for_linux(one, None)).ok_or_else(unknown)
            }
            [first, second] => {
                let whole = Self::normalized(first, second, None);
                let short = for_linux(first, Some(second)).filter(|_| !SYSTEMS.contains(&whole.os.as_str()));
                Ok(short.unwrap_or(whole))
            }
            [os, architecture, variant] => Ok(Self::normalized(os, architecture, Some(variant))),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
