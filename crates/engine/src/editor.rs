//! Edits on request (*io*): one thread holds the model and the images that were edited last, and serves requests one by one.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use proto::Object;
use serde::Serialize;
use store::{Runs, Store};
use tokio::sync::{mpsc, oneshot};

use crate::edit::{EditError, EditRequest, Edited, Projected, directions, read_record};
use crate::supply::{self, Models};
use crate::{Cache, LoadedModel, codec};

/// Images in memory. Each may have a generator of its own.
const KEPT: usize = 4;
/// Requests that wait.
const WAITING: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Blended into the image.
    Blended,
    /// In the image's frame.
    Inverted,
    /// As the generator made it.
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

/// A handle to the thread, which ends with the last of them.
#[derive(Clone)]
pub struct Editor {
    asks: mpsc::Sender<Ask>,
}

enum Ask {
    Picture { run: String, image: String, request: EditRequest, view: View, reply: oneshot::Sender<Result<Vec<u8>, EditError>> },
    Options { run: String, image: String, reply: oneshot::Sender<Result<Options, EditError>> },
}

impl Editor {
    pub fn start(models: Models, runs: Runs) -> io::Result<Editor> {
        let (asks, receiver) = mpsc::channel(WAITING);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (loaded, home) = match models {
            Models::One(model) => (Some(Loaded::new(*model)), None),
            Models::Home { home, cache } => (None, Some((home, cache))),
        };
        let body = move || runtime.block_on(serve(Bench { home, runs, loaded, kept: VecDeque::new() }, receiver));
        std::thread::Builder::new().name("edit".into()).spawn(body)?;
        Ok(Editor { asks })
    }

    /// A picture of an edit, as PNG.
    pub async fn picture(&self, run: String, image: String, request: EditRequest, view: View) -> Result<Vec<u8>, EditError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Picture { run, image, request, view, reply }, answer).await
    }

    /// The edits that an image allows.
    pub async fn options(&self, run: String, image: String) -> Result<Options, EditError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Options { run, image, reply }, answer).await
    }

    async fn ask<T>(&self, ask: Ask, answer: oneshot::Receiver<Result<T, EditError>>) -> Result<T, EditError> {
        let sent = self.asks.send(ask).await;
        sent.ok().ok_or(EditError::Ended)?;
        answer.await.map_err(|_| EditError::Ended)?
    }
}

async fn serve(mut bench: Bench, mut asks: mpsc::Receiver<Ask>) {
    while let Some(ask) = asks.recv().await {
        // A request whose client has gone is skipped.
        match ask {
            Ask::Picture { reply, .. } if reply.is_closed() => {}
            Ask::Picture { run, image, request, view, reply } => {
                let _ = reply.send(bench.picture(&run, &image, &request, view).await);
            }
            Ask::Options { run, image, reply } => {
                let _ = reply.send(bench.options(&run, &image).await);
            }
        }
    }
}

/// What the thread keeps between requests.
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

impl Loaded {
    fn new(model: LoadedModel) -> Loaded {
        Loaded { directions: directions(&model), model }
    }
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
            tuned: projected.is_tuned(),
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
            self.loaded =
                Some(Loaded::new(model.map_err(|source| EditError::Model { image: image.to_owned(), source: source.into() })?));
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
