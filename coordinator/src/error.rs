use dataset::DatasetError;
use results::RunError;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("the queue failed")]
    Queue(#[from] queue::Error),
    #[error("{out} lies inside the data set {dataset}: write the results outside of it")]
    OutInside { out: String, dataset: String },
    #[error("there is no model {model} in {url}: upload it with basin push FOLDER")]
    NoModel { model: String, url: String },
    #[error("{key} is not a valid model description")]
    BadModel { key: String, source: proto::DecodeError },
    #[error("{key} is the record of a run named {name:?}: restore it, or delete it")]
    OtherName { key: String, name: String },
    #[error("no image of run {run} matches; nothing changed. See basin runs show {run}")]
    NoMatch { run: String },
    #[error("the data set cannot be opened")]
    NotAllowed(#[from] store::NotAllowed),
    #[error("the lead is lost, with the queue's connection or to a later coordinator: another one may act now")]
    LostLead,
    #[error("the store has been away for {seconds} s and a standby reaches it: this coordinator gives up its lead")]
    GivesUp { seconds: u64 },
    #[error(
        "{url} lets two writers create the same key, so that two workers could both commit an image: use a store that honours \
        If-None-Match. basin doctor shows details"
    )]
    BadHome { url: String },
    #[error(
        "{url} does not honour If-Match for writes, so that a coordinator that was stopped could overwrite the orders of its \
        successor: use a store that does. basin doctor shows details"
    )]
    NoReplace { url: String },
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
    pub fn store(&self) -> Option<&store::Error> {
        match self {
            Error::Run(error) => error.store(),
            _ => None,
        }
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Run(error) if error.is_not_found())
    }
}
