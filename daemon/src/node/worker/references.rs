//! The names by which an image was asked for. Each stands for places that have its blobs, which are asked with the login of that name.
//!
//! An image is what its manifest, or its index, says; where it was first found does not matter. So a mount of it by another name finds it
//! served already, and adds that name's sources to those that its readers use. A name goes with the last mount that holds it; the
//! last name of all stays as long as the image, as copies of its mounts may live on.

use std::path::PathBuf;
use std::sync::Arc;

use lazo_registry::{ImageRef, Source};
use lazo_storage::{BlobSource, SourceId, Upstream};

use super::Worker;
use super::image::{Image, Wanted, parse};
use super::mounts::Mount;
use super::state::{MountRecord, Reference};
use crate::node::protocol::{ApiError, ErrorKind, MAX_REFERENCES};

/// A name, and the sources that it stands for: none if they cannot be used.
pub(super) type Found = (Reference, Vec<Arc<dyn BlobSource>>);

impl Reference {
    /// One that is asked for now.
    pub(super) fn now(image: String, registry: crate::node::protocol::RegistryOptions) -> Self {
        Self { image, registry, used: crate::node::now() }
    }

    /// Whose the blobs are. Tags do not count: blobs are named by their digests.
    pub(super) fn place(&self) -> String {
        match self.image.parse() {
            Ok(ImageRef::Docker(reference)) => format!("{}/{}", reference.host, reference.repository),
            Ok(other) => other.to_string(),
            Err(_) => self.image.clone(),
        }
    }

    /// Whether both stand for the same sources, with the same logins.
    fn is_like(&self, other: &Self) -> bool {
        self.registry == other.registry && self.place() == other.place()
    }
}

/// Adds the names that mounts of an image hold and that its record lacks, as records lose them in the hands of an older worker.
pub(super) fn complete(known: &mut Vec<Reference>, held: impl IntoIterator<Item = Reference>) {
    for reference in held {
        if !known.iter().any(|other| other.is_like(&reference)) {
            known.push(reference);
        }
    }
}

/// Those of one image, in the order in which their sources are asked.
#[derive(Debug, Default)]
pub(super) struct References(Vec<Held>);

#[derive(Debug)]
struct Held {
    reference: Reference,
    sources: Vec<SourceId>,
    /// Mounts that hold it.
    mounts: u64,
}

impl References {
    /// Those of an image that is served anew; nobody holds them yet. Their sources come behind those that `upstream` has.
    pub(super) fn new(found: Vec<Found>, upstream: Option<&Upstream>) -> Self {
        let mut references = Self::default();
        for (reference, sources) in found {
            references.add(reference, sources, upstream);
        }
        references
    }

    /// One more mount holds a name. One that is new brings its sources; those of one that is known are asked at once for what they refused.
    pub(super) fn hold(&mut self, (reference, sources): Found, upstream: Option<&Upstream>) {
        let held = self.add(reference, sources, upstream);
        held.mounts += 1;
    }

    fn add(
        &mut self,
        reference: Reference,
        sources: Vec<Arc<dyn BlobSource>>,
        upstream: Option<&Upstream>,
    ) -> &mut Held {
        let place = match self.place_of(&reference) {
            Some(place) => {
                self.0[place].reference.used = reference.used;
                place
            }
            None => {
                self.make_room(upstream);
                self.0.push(Held { reference, sources: Vec::new(), mounts: 0 });
                self.0.len() - 1
            }
        };
        let held = &mut self.0[place];
        match upstream {
            Some(upstream) if held.sources.is_empty() => held.sources = upstream.add(sources),
            Some(upstream) => upstream.hurry(&held.sources),
            None => {}
        }
        held
    }

    /// A mount of an earlier worker holds these.
    pub(super) fn count(&mut self, references: &[Reference]) {
        for place in references.iter().filter_map(|reference| self.place_of(reference)).collect::<Vec<_>>() {
            self.0[place].mounts += 1;
        }
    }

    /// A mount holds a name no longer.
    pub(super) fn release(&mut self, reference: &Reference, upstream: Option<&Upstream>) {
        let Some(place) = self.place_of(reference) else { return };
        let held = &mut self.0[place];
        held.mounts = held.mounts.saturating_sub(1);
        if held.mounts == 0 && self.0.iter().any(|other| other.mounts > 0) {
            self.remove(place, upstream);
        }
    }

    /// The names.
    pub(super) fn list(&self) -> Vec<Reference> {
        self.0.iter().map(|held| held.reference.clone()).collect()
    }

    fn place_of(&self, reference: &Reference) -> Option<usize> {
        self.0.iter().position(|held| held.reference.is_like(reference))
    }

    /// Of too many, the one goes that was not asked for for the longest time.
    fn make_room(&mut self, upstream: Option<&Upstream>) {
        while self.0.len() >= MAX_REFERENCES {
            let oldest = self.0.iter().enumerate().min_by_key(|(_, held)| held.reference.used).map(|(place, _)| place);
            self.remove(oldest.unwrap_or_default(), upstream);
        }
    }

    fn remove(&mut self, place: usize, upstream: Option<&Upstream>) {
        let held = self.0.remove(place);
        if let Some(upstream) = upstream {
            upstream.remove(&held.sources);
        }
    }
}

impl Image {
    /// One more mount holds these names.
    pub(super) fn hold(&mut self, found: Vec<Found>) {
        let upstream = self.fs.as_ref().ok().map(|fs| fs.reader().upstream());
        for found in found {
            self.references.hold(found, upstream);
        }
        self.record.refer(self.references.list());
    }

    /// A mount less holds these.
    pub(super) fn release(&mut self, references: &[Reference]) {
        let upstream = self.fs.as_ref().ok().map(|fs| fs.reader().upstream());
        for reference in references {
            self.references.release(reference, upstream);
        }
        self.record.refer(self.references.list());
    }
}

impl Worker {
    /// The sources that names stand for. Of those that cannot be opened, the log tells.
    pub(super) async fn find(&self, references: &[Reference]) -> Vec<Found> {
        let mut found = Vec::new();
        for reference in references {
            found.push((reference.clone(), self.sources_of(reference).await));
        }
        found
    }

    async fn sources_of(&self, reference: &Reference) -> Vec<Arc<dyn BlobSource>> {
        let open = async {
            let image: ImageRef = parse("image", &reference.image)?;
            let failed = |error: &dyn std::error::Error| ApiError::of(ErrorKind::Image, error);
            let source = Source::open(&image, &self.registry_options(&reference.registry)).await;
            let source = source.map_err(|error| failed(&error))?;
            lazo_storage::of_image(&source).map_err(|error| failed(&error))
        };
        open.await.unwrap_or_else(|error: ApiError| {
            // What is in the cache, or comes from elsewhere, is served all the same.
            tracing::warn!(image = reference.image, error = error.error, "an image's own source cannot be used");
            Vec::new()
        })
    }

    /// Sets the names that the image of a mount has for who uses it.
    pub(super) async fn refer(self: &Arc<Self>, place: PathBuf, images: Vec<String>) -> Result<(), ApiError> {
        let record = self.live(&place)?;
        let Some((first, also)) = images.split_first() else { return Ok(()) };
        let mut changed = MountRecord { image: first.clone(), also: also.to_vec(), ..record.clone() };
        changed.also.retain(|name| name != first);
        let wanted: Vec<Reference> =
            changed.references().into_iter().map(|name| Reference::now(name.image, name.registry)).collect();
        let found = self.find_apart(wanted).await?;
        let mut tables = self.tables();
        if !matches!(tables.mounts.get(&place), Some(Mount::Live(live)) if *live == record) {
            let text = format!("the mount at {} has changed meanwhile", place.display());
            return Err(ApiError::new(ErrorKind::Unavailable, text));
        }
        if let Some(image) = tables.images.get_mut(&record.slot) {
            // First the new ones, so that there is always one.
            image.hold(found);
            image.release(&record.references());
            self.save(image);
        }
        let saved = self.state.save(&changed);
        tracing::info!(mount_point = %place.display(), ?images, "an image has these names");
        tables.mounts.insert(place, Mount::Live(changed));
        saved.map_err(|error| ApiError::new(ErrorKind::Internal, format!("cannot write a record: {error}")))
    }

    fn live(&self, place: &std::path::Path) -> Result<MountRecord, ApiError> {
        let later =
            |what: &str| ApiError::new(ErrorKind::Unavailable, format!("{} {what}; try again", place.display()));
        let tables = self.tables();
        match tables.mounts.get(place) {
            Some(Mount::Live(record)) if tables.restoring.contains(&record.slot) => Err(later("is served again soon")),
            Some(Mount::Live(record)) => Ok(record.clone()),
            Some(Mount::Making(_)) => Err(later("is being mounted")),
            Some(Mount::Ending(_)) | None => {
                Err(ApiError::new(ErrorKind::NotFound, format!("{} is not a lazo mount", place.display())))
            }
        }
    }

    /// [`Self::find`] on a thread of its own, as a layout may lie on a file server that hangs.
    async fn find_apart(self: &Arc<Self>, references: Vec<Reference>) -> Result<Vec<Found>, ApiError> {
        for reference in &references {
            Wanted::check(&reference.image)?;
        }
        let failed = |error: &dyn std::error::Error| ApiError::of(ErrorKind::Internal, error);
        let place = references.first().map(Reference::place).unwrap_or_default();
        let room = self.at_hand.take(&place).await.map_err(|error| failed(&error))?;
        let (worker, runtime) = (Arc::clone(self), self.runtime.clone());
        let finding = tokio::task::spawn_blocking(move || {
            let _room = room;
            runtime.block_on(worker.find(&references))
        });
        finding.await.map_err(|error| failed(&error))
    }

    /// Writes an image's record anew.
    pub(super) fn save(&self, image: &Image) {
        if let Err(error) = self.state.save(&image.record) {
            tracing::warn!(slot = image.record.slot, %error, "cannot complete a record");
        }
    }
}

#[cfg(test)]
mod tests {
    use lazo_storage::Policy;
    use lazo_storage::metrics::Metrics;

    use super::*;
    use crate::node::protocol::{RegistryOptions, Served};
    use crate::node::worker::state::DataOptions;

    fn named(image: &str, used: u64) -> Reference {
        Reference { image: image.to_owned(), registry: RegistryOptions::default(), used }
    }

    fn found(image: &str, used: u64) -> Found {
        let source = lazo_storage::LayoutSource::new("/nowhere".as_ref()).unwrap();
        (named(image, used), vec![Arc::new(source)])
    }

    fn names(references: &References) -> Vec<String> {
        references.list().into_iter().map(|reference| reference.image).collect()
    }

    #[test]
    fn logins_of_sources_besides_an_images_own_are_not_shared() {
        let data = |sources: &[&str], authfile: &str| DataOptions {
            sources: sources.iter().map(|source| (*source).to_owned()).collect(),
            registry: RegistryOptions { authfile: Some(authfile.into()), ..RegistryOptions::default() },
            ..DataOptions::default()
        };
        let is_shared = |sources: &[&str], configured| {
            let [one, other] = ["/one", "/other"]
                .map(|authfile| Image::key("sha256:00", Served::Erofs, &data(sources, authfile), configured));
            one == other
        };
        assert!(is_shared(&[], false), "each name brings its own");
        assert!(!is_shared(&["https://a.example/"], false));
        assert!(!is_shared(&[], true));
    }

    #[test]
    fn names_that_a_record_has_lost_are_those_of_its_mounts() {
        let mut known = vec![named("docker://a.example/r:1", 1)];
        complete(&mut known, ["docker://a.example/r:2", "docker://b.example/r:1"].map(|image| named(image, 2)));
        let images: Vec<&str> = known.iter().map(|reference| reference.image.as_str()).collect();
        assert_eq!(images, ["docker://a.example/r:1", "docker://b.example/r:1"]);
    }

    #[test]
    fn names_come_and_go_with_who_holds_them_and_one_always_stays() {
        let upstream = Upstream::new(Vec::new(), Policy::default(), Arc::new(Metrics::new()));
        let mut references = References::default();
        references.hold(found("docker://a.example/r:1", 1), Some(&upstream));
        references.hold(found("docker://a.example/r:2", 2), Some(&upstream));
        references.hold(found("docker://b.example/r:1", 3), Some(&upstream));
        assert_eq!(
            names(&references),
            ["docker://a.example/r:1", "docker://b.example/r:1"],
            "a tag is no other source"
        );
        assert_eq!(upstream.sources(), 2);
        references.release(&named("docker://a.example/r:1", 0), Some(&upstream));
        assert_eq!(upstream.sources(), 2, "somebody else holds it");
        references.release(&named("docker://a.example/r:2", 0), Some(&upstream));
        assert_eq!((names(&references), upstream.sources()), (vec!["docker://b.example/r:1".to_owned()], 1));
        references.release(&named("docker://b.example/r:1", 0), Some(&upstream));
        assert_eq!(upstream.sources(), 1, "copies of its mounts may live");
        let other = RegistryOptions { plain_http: true, ..RegistryOptions::default() };
        let same = (Reference { registry: other, ..named("docker://b.example/r:1", 4) }, Vec::new());
        references.hold(same, Some(&upstream));
        assert_eq!(references.list().len(), 2, "another way to reach it, with another login perhaps");
    }

    #[test]
    fn of_too_many_the_one_goes_that_was_not_asked_for_for_the_longest_time() {
        let upstream = Upstream::new(Vec::new(), Policy::default(), Arc::new(Metrics::new()));
        let mut references = References::default();
        for number in 0..MAX_REFERENCES as u64 {
            references.hold(found(&format!("docker://{number}.example/r"), number), Some(&upstream));
        }
        references.hold(found("docker://0.example/r", 100), Some(&upstream));
        references.hold(found("docker://new.example/r", 101), Some(&upstream));
        let names = names(&references);
        assert_eq!((names.len(), upstream.sources()), (MAX_REFERENCES, MAX_REFERENCES));
        assert_eq!(names.first().unwrap(), "docker://0.example/r");
        assert!(
            !names.contains(&"docker://1.example/r".to_owned()) && names.contains(&"docker://new.example/r".to_owned())
        );
    }
}
