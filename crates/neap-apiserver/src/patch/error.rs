//! What can be wrong with a patch document, and the answer the client gets.

use kube_core::response::{Status, StatusCause, StatusDetails, StatusSummary};

/// Why a patch was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PatchError {
    /// The document is no patch of its kind (400).
    #[error("error decoding patch: {reason}")]
    Malformed {
        /// What is wrong with it.
        reason: String,
    },
    /// More operations than one request may carry (413).
    #[error("The allowed maximum operations in a JSON patch is {most}, got {got}")]
    TooManyOperations {
        /// How many there were.
        got: usize,
        /// How many there may be.
        most: usize,
    },
    /// A JSON patch whose copies come to too much (413).
    #[error("Unable to complete the copy, the accumulated size increase of copy is limited to {most} bytes")]
    CopiesTooMuch {
        /// Bytes they may come to.
        most: usize,
    },
    /// A well-formed JSON patch that does not fit this object (422).
    #[error("{reason}")]
    Failed {
        /// Which operation did not fit.
        reason: String,
    },
    /// A strategic merge patch that contradicts itself or the object (400).
    #[error("{reason}")]
    BadDirective {
        /// The contradiction.
        reason: String,
    },
}

impl PatchError {
    pub(super) fn malformed(reason: impl Into<String>) -> Self {
        Self::Malformed { reason: reason.into() }
    }

    pub(super) fn directive(reason: impl Into<String>) -> Self {
        Self::BadDirective { reason: reason.into() }
    }

    /// The HTTP status code.
    pub fn code(&self) -> u16 {
        match self {
            Self::Malformed { .. } | Self::BadDirective { .. } => 400,
            Self::TooManyOperations { .. } | Self::CopiesTooMuch { .. } => 413,
            Self::Failed { .. } => 422,
        }
    }

    /// The whole answer.
    pub fn to_status(&self) -> Status {
        let (message, reason, causes) = match self {
            Self::Malformed { .. } | Self::BadDirective { .. } => (self.to_string(), "BadRequest", Vec::new()),
            Self::TooManyOperations { .. } | Self::CopiesTooMuch { .. } => {
                (self.to_string(), "RequestEntityTooLarge", Vec::new())
            }
            Self::Failed { reason } => (
                "the server rejected our request due to an error in our request".to_owned(),
                "Invalid",
                vec![StatusCause {
                    reason: "UnexpectedServerResponse".to_owned(),
                    message: reason.clone(),
                    field: String::new(),
                }],
            ),
        };
        Status {
            status: Some(StatusSummary::Failure),
            code: self.code(),
            message,
            metadata: None,
            reason: reason.to_owned(),
            details: (!causes.is_empty()).then(|| StatusDetails {
                name: String::new(),
                group: String::new(),
                kind: String::new(),
                uid: String::new(),
                causes,
                retry_after_seconds: 0,
            }),
        }
    }
}
