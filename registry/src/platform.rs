//! Platforms: what an image is built for, and which one of an index suits.

use std::{fmt, str::FromStr};

use oci_spec::image::Platform as OciPlatform;

use crate::error::{Error, Result};

/// Operating system, architecture and variant, in Go's words (`linux/arm64/v8`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    /// GOOS.
    pub os: String,
    /// GOARCH.
    pub architecture: String,
    /// CPU variant such as `v7`; `None` accepts the architecture's usual one.
    pub variant: Option<String>,
}

/// A variant as a number, `v8.1` being (8, 1), so that a CPU may run images for a lower one.
type Level = (u32, u32);

impl Platform {
    /// The platform this program was built for, with `linux` as the system.
    #[must_use]
    pub fn host() -> Self {
        Self::normalized("linux", std::env::consts::ARCH, None)
    }

    fn normalized(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let (architecture, variant) = match (architecture, variant) {
            ("x86_64" | "x86-64", v) => ("amd64", v),
            ("aarch64", v) => ("arm64", v),
            ("armhf", None) => ("arm", Some("v7")),
            ("armel", None) => ("arm", Some("v6")),
            ("i386" | "i686" | "x86", v) => ("386", v),
            ("powerpc64", v) => ("ppc64le", v),
            other => other,
        };
        Self { os: os.to_owned(), architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    fn of(platform: &OciPlatform) -> Self {
        Self::normalized(
            &platform.os().to_string(),
            &platform.architecture().to_string(),
            platform.variant().as_deref().filter(|v| !v.is_empty()),
        )
    }

    /// How well an image for `candidate` suits: `None` not at all, else higher is better.
    pub(crate) fn suits(&self, candidate: &OciPlatform) -> Option<Level> {
        self.suits_own(&Self::of(candidate))
    }

    /// Whether an image runs here whose configuration says this of it.
    #[must_use]
    pub fn accepts(&self, os: &str, architecture: &str, variant: Option<&str>) -> bool {
        self.suits_own(&Self::normalized(os, architecture, variant.filter(|v| !v.is_empty()))).is_some()
    }

    fn suits_own(&self, candidate: &Self) -> Option<Level> {
        if candidate.os != self.os || candidate.architecture != self.architecture {
            return None;
        }
        match (self.level(), candidate.level()) {
            (Some(own), Some(other)) => (other <= own).then_some(other),
            // Variants nobody ordered: equal, or not asked for.
            _ => (self.variant.is_none() || self.variant == candidate.variant).then_some((0, 0)),
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

/// `os/architecture[/variant]`, for messages.
pub(crate) fn shown(platform: &OciPlatform) -> String {
    Platform::of(platform).to_string()
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let part_ok = |p: &&str| !p.is_empty() && p.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        let parts: Vec<&str> = text.split('/').filter(part_ok).collect();
        match (parts.as_slice(), text.split('/').count()) {
            ([os, architecture], 2) => Ok(Self::normalized(os, architecture, None)),
            ([os, architecture, variant], 3) => Ok(Self::normalized(os, architecture, Some(variant))),
            _ => Err(Error::invalid(
                format_args!("platform {text:?}"),
                "expected OS/ARCHITECTURE[/VARIANT], for instance linux/amd64 or linux/arm64/v8",
            )),
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
mod tests {
    use super::*;

    fn oci(text: &str) -> OciPlatform {
        let p: Platform = text.parse().unwrap();
        let mut out = OciPlatform::default();
        out.set_os(p.os.as_str().into()).set_architecture(p.architecture.as_str().into()).set_variant(p.variant);
        out
    }

    #[test]
    fn parses_and_prints() {
        for (text, shown) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64/v8"),
            ("linux/armhf", "linux/arm/v7"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), shown);
        }
        for bad in ["", "linux", "linux/", "/amd64", "linux//v8", "a/b/c/d", "linux/amd 64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn chooses_by_variant() {
        let best = |wanted: &str, have: &[&str]| -> Option<String> {
            let wanted: Platform = wanted.parse().unwrap();
            have.iter().filter_map(|h| Some((wanted.suits(&oci(h))?, *h))).max_by_key(|c| c.0).map(|c| c.1.to_owned())
        };
        let arm = ["linux/arm/v5", "linux/arm/v7", "linux/arm/v6", "linux/arm64"];
        assert_eq!(best("linux/arm", &arm).as_deref(), Some("linux/arm/v7"));
        assert_eq!(best("linux/arm/v6", &arm).as_deref(), Some("linux/arm/v6"));
        assert_eq!(best("linux/arm/v8", &arm).as_deref(), Some("linux/arm/v7"));
        assert_eq!(best("linux/arm64", &["linux/arm64/v8"]).as_deref(), Some("linux/arm64/v8"));
        assert_eq!(best("linux/arm64/v8", &["linux/arm64"]).as_deref(), Some("linux/arm64"));
        assert_eq!(best("linux/amd64", &["linux/amd64/v3", "linux/amd64"]).as_deref(), Some("linux/amd64"));
        assert_eq!(best("linux/amd64/v3", &["linux/amd64/v3", "linux/amd64"]).as_deref(), Some("linux/amd64/v3"));
        assert_eq!(best("linux/s390x", &arm), None);
        assert_eq!(best("windows/arm", &arm), None);
    }
}
