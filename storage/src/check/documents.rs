//! Manifest and config: do they describe a lazo image.

use lazo_format::Digest;
use lazo_registry::{LazoFault, LazoLayers, Manifest, Source, shown_platform};

use super::report::{ImageReport, Part, chain};

/// The manifest's layers; notes what is not as it should be. `None` without a bootstrap layer that could be checked.
pub(super) fn layers(manifest: &Manifest, report: &mut ImageReport) -> Option<LazoLayers> {
    match LazoLayers::read(&manifest.manifest) {
        Ok((layers, faults)) => {
            faults.iter().for_each(|fault| note(fault, report));
            Some(layers)
        }
        Err(fault) => {
            note(&fault, report);
            None
        }
    }
}

fn note(fault: &LazoFault, report: &mut ImageReport) {
    let part = if matches!(fault, LazoFault::Config(_)) { Part::Config } else { Part::Manifest };
    report.add(part, fault);
}

/// Fetches the config and compares its diffIDs with the layers. Answers the bootstrap layer's.
pub(super) async fn config(
    source: &Source,
    manifest: &Manifest,
    layers: &LazoLayers,
    report: &mut ImageReport,
) -> Option<Digest> {
    let config = source.config(manifest).await;
    let config = config.map_err(|error| report.add(Part::Config, chain(&error))).ok()?;
    if report.platform.is_none() {
        report.platform = config.platform().as_ref().map(shown_platform);
    }
    let (diff_id, faults) = layers.bootstrap_diff_id(config.diff_ids());
    faults.iter().for_each(|fault| note(fault, report));
    diff_id
}
