//! Edits on request (*io*), one by one. The model and the images that were edited last stay in memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use proto::Object;
use serde::Serialize;
use store::{Runs, Store};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, oneshot};

use crate::edit::{EditError, EditRequest, Edited, Projected, directions, read_record};
use crate::supply::{self, Models};
use crate::{Cache, LoadedModel, codec};

/// Images in memory. Each may have a generator of its own.
const KEPT: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Blended,
    Inverted,
    Generated,
}

impl View {
    pub fn named(name: &str) -> Option<View> {
        match name {
            "blended" => Some(View::Blended),
            "inverted" => Some(View::Inverted),
            "generated" => Some(View::Generated),
            _ => None,
        }
    }

    pub fn of(self, edited: Edited) -> Vec<f32> {
        match self {
            View::Blended => edited.blended,
            View::Inverted => edited.inverted,
            View::Generated => edited.generated,
        }
    }
}

/// The edits that an image allows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Options {
    pub class: String,
    pub classes: Vec<String>,
    pub directions: Vec<String>,
    /// Whether the generator was fitted to the image.
    pub tuned: bool,
}

/// Serves edits; clones share what it keeps.
#[derive(Clone)]
pub struct Editor(Arc<Mutex<Bench>>);

impl Editor {
    pub fn new(models: Models, runs: Runs) -> Editor {
        let (loaded, home) = match models {
            Models::One(model) => (Some(Loaded { directions: directions(&model), model: *model }), None),
            Models::Home { home, cache } => (None, Some((home, cache))),
        };
        Editor(Arc::new(Mutex::new(Bench { home, runs, loaded, kept: VecDeque::new() })))
    }

    /// A picture of an edit, as PNG.
    pub async fn picture(&self, run: String, image: String, request: EditRequest, view: View) -> Result<Vec<u8>, EditError> {
        self.serve(async move |bench| bench.picture(&run, &image, &request, view).await).await
    }

    pub async fn options(&self, run: String, image: String) -> Result<Options, EditError> {
        self.serve(async move |bench| bench.options(&run, &image).await).await
    }

    async fn serve<T, W>(&self, work: W) -> Result<T, EditError>
    where
        T: Send + 'static,
        W: AsyncFnOnce(&mut Bench) -> Result<T, EditError> + Send + 'static,
    {
        // A request whose client has gone is dropped while it waits here.
        let mut bench = self.0.clone().lock_owned().await;
        let runtime = Handle::current();
        let (reply, served) = oneshot::channel();
        // A thread of its own, so that the end of the program does not wait for an edit.
        std::thread::spawn(move || {
            let answer = runtime.block_on(work(&mut bench));
            drop(bench);
            let _ = reply.send(answer);
        });
        served.await.map_err(|_| EditError::Ended)?
    }
}

struct Bench {
    /// The source of models; `None`: the loaded one is the only one.
    home: Option<(Store, Cache)>,
    runs: Runs,
    loaded: Option<Loaded>,
    /// By run and image, of the loaded model. The last used is at the end.
    kept: VecDeque<((String, String), Projected)>,
}

struct Loaded {
    model: LoadedModel,
    directions: BTreeMap<String, Vec<f32>>,
}

impl Bench {
    async fn picture(&mut self, run: &str, image: &str, request: &EditRequest, view: View) -> Result<Vec<u8>, EditError> {
        let (model, projected) = self.at(run, image).await?;
        let edited = projected.edit(&model.model, &model.directions, request)?;
        Ok(codec::encode_png(&view.of(edited), model.model.reference.resolution))
    }

    async fn options(&mut self, run: &str, image: &str) -> Result<Options, EditError> {
        let (model, projected) = self.at(run, image).await?;
        Ok(Options {
            class: projected.record.class_name.clone(),
            classes: model.model.manifest.classes.clone(),
            directions: model.directions.keys().cloned().collect(),
            tuned: projected.tuned.is_some(),
        })
    }

    /// The image, kept or read, and its model.
    async fn at(&mut self, run: &str, image: &str) -> Result<(&Loaded, &Projected), EditError> {
        let store_error = |source| EditError::Store { image: image.to_owned(), source };
        let results = self.runs.of(run).map_err(store_error)?;
        // Read each time: the image may have been projected again.
        let record = read_record(&results, image).await?;
        let digest = &record.model.digest;
        let fits = self.loaded.as_ref().is_some_and(|loaded| loaded.model.reference.digest == *digest);
        if let (false, Some((home, cache))) = (fits, &self.home) {
            // The old one leaves before the new one comes.
            self.kept.clear();
            self.loaded = None;
            let model = supply::cached(home, cache, &record.model.name, digest, &Object::default()).await;
            let model = model.map_err(|source| EditError::Model { image: image.to_owned(), source: source.into() })?;
            self.loaded = Some(Loaded { directions: directions(&model), model });
        }
        let loaded = self.loaded.as_ref().expect("one is loaded from the start, or just now");
        let key = (run.to_owned(), image.to_owned());
        let there = self.kept.iter().position(|(k, projected)| *k == key && projected.record == record);
        let entry = match there.and_then(|at| self.kept.remove(at)) {
            Some(entry) => entry,
            None => (key, Projected::of(record, &results, &loaded.model).await?),
        };
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(entry);
        Ok((loaded, &self.kept.back().expect("just put there").1))
    }
}
