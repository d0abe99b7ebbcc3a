//! Why the coordinator cannot go on.

use dataset::DatasetError;
use results::RunError;

/// Why a run cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The run, its data set or its store cannot be read or written.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The queue failed.
    #[error("the queue failed")]
    Queue(#[from] queue::Error),
    /// The results would become part of the data set.
    #[error("{out} lies inside the data set {dataset}: choose a place outside of it for the results")]
    OutInside {
        /// URL of the results.
        out: String,
        /// URL of the data set.
        dataset: String,
    },
    /// The home has no such model.
    #[error("there is no model {model} in {url}: basin push FOLDER puts a model folder there")]
    NoModel {
        /// Name of the model.
        model: String,
        /// URL of the home.
        url: String,
    },
    /// `model.json` in the home is not valid.
    #[error("{key} is no model description")]
    BadModel {
        /// Key of the file.
        key: String,
        /// Why.
        source: proto::DecodeError,
    },
    /// A record in the index is of another run.
    #[error("{key} is the record of a run named {name:?}")]
    OtherName {
        /// Key of the record.
        key: String,
        /// The name in it.
        name: String,
    },
    /// A redrive has nothing to do.
    #[error("run {run} has nothing that this selects: nothing is redriven")]
    NothingMeant {
        /// Name of the run.
        run: String,
    },
    /// Another coordinator may act now.
    #[error("the connection that made this coordinator the acting one is lost")]
    LostLead,
    /// The store lets several create a key.
    #[error(
        "{url} lets two writers create the same key, so that two workers could both commit an image: basin doctor tells more; use \
        a store that honours If-None-Match"
    )]
    BadHome {
        /// URL of the home.
        url: String,
    },
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Error {
        RunError::from(error).into()
    }
}

impl From<DatasetError> for Error {
    fn from(error: DatasetError) -> Error {
        RunError::from(error).into()
    }
}

impl Error {
    /// What the store said, if the store failed.
    pub fn store(&self) -> Option<&store::Error> {
        match self {
            Error::Run(error) => error.store(),
            _ => None,
        }
    }

    /// Whether an object of a run is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Run(error) if error.is_not_found())
    }
}
