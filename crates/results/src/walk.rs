//! One pass over the records of a run (*io*), in the order of the images' names and in bounded memory: the places of all images are
//! held, and of the records those that are being read.

use std::collections::HashMap;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use proto::keys::{Kind, Marker};
use proto::{Failure, ResultRecord, keys};
use store::Store;

use crate::manifest::ObjectEntry;
use crate::run::{AT_ONCE, Markers, RunError, generations, image};
use crate::seeds::Seeds;
use crate::tabulation::Finished;

/// The finished images of a run.
pub struct Walk {
    results: Store,
    /// Keys of the markers, in the order of the images.
    markers: Vec<String>,
    generations: Seeds,
    /// Images that have a result.
    pub succeeded: usize,
}

impl Walk {
    /// Lists the images.
    pub async fn begin(results: &Store) -> Result<Walk, RunError> {
        let Markers { results: succeeded, failures } = Markers::list(results).await?;
        let count = succeeded.len();
        let mut markers: Vec<String> = succeeded.iter().map(|place| keys::marker_at(place, Marker::Result)).collect();
        drop(succeeded);
        markers.extend(failures.iter().map(|place| keys::marker_at(place, Marker::Failure)));
        drop(failures);
        let long = long_names(&markers, results).await?;
        sort(&mut markers, &long);
        Ok(Walk { results: results.clone(), markers, generations: generations(results).await?, succeeded: count })
    }

    /// The records, [`AT_ONCE`] read at a time. A failure of an earlier generation than its image's is left out: that image is not
    /// finished.
    pub fn records(self) -> BoxStream<'static, Result<Finished, RunError>> {
        let Walk { results, markers, generations, .. } = self;
        let read = move |key: String| {
            let results = results.clone();
            async move { read(&results, key).await }
        };
        let counts = move |finished: &Finished| match &finished.outcome {
            Ok(_) => true,
            Err(failure) => failure.generation >= generations.generation(&failure.image),
        };
        stream::iter(markers).map(read).buffered(AT_ONCE).try_filter(move |f| std::future::ready(counts(f))).boxed()
    }
}

/// Sorts keys of markers by the names of their images. `long`: those by place whose names are not in their places.
pub fn sort(markers: &mut [String], long: &HashMap<String, String>) {
    markers.sort_by_cached_key(|key| name_at(key, long));
}

async fn read(results: &Store, key: String) -> Result<Finished, RunError> {
    let bytes = results.get(&key).await?;
    let outcome = match keys::parse(&key) {
        Some(Kind::Marker(_, Marker::Failure)) => serde_json::from_slice::<Failure>(&bytes).map(|failure| Err(Box::new(failure))),
        _ => serde_json::from_slice::<ResultRecord>(&bytes).map(|record| Ok(Box::new(record))),
    };
    match outcome {
        Ok(outcome) => Ok(Finished { outcome, marker: ObjectEntry::new(key, &bytes) }),
        Err(source) => Err(RunError::Damaged { key, source }),
    }
}

fn name_at(key: &str, long: &HashMap<String, String>) -> String {
    let place = place_of(key);
    keys::image_at(place).or_else(|| long.get(place).cloned()).unwrap_or_else(|| place.to_owned())
}

fn place_of(key: &str) -> &str {
    match keys::parse(key) {
        Some(Kind::Marker(place, _)) => place,
        _ => key,
    }
}

/// The images, by place, whose names are too long to be read from their places.
async fn long_names(markers: &[String], results: &Store) -> Result<HashMap<String, String>, RunError> {
    let long = markers.iter().filter(|key| keys::image_at(place_of(key)).is_none()).cloned();
    let results = results.clone();
    let name = move |key: String| {
        let results = results.clone();
        async move {
            let Finished { outcome, .. } = read(&results, key.clone()).await?;
            let name = image(outcome.as_ref().map(|record| &**record).map_err(|failure| &**failure)).to_owned();
            Ok::<_, RunError>((place_of(&key).to_owned(), name))
        }
    };
    stream::iter(long.collect::<Vec<_>>()).map(name).buffer_unordered(AT_ONCE).try_collect().await
}
