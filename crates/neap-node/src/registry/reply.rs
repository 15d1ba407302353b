//! Answers of the registry, and the one table from refusals to status codes.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use neap_runtime::image::{PutManifestError, StoreError};
use serde::Serialize;

pub(super) type Body = UnsyncBoxBody<Bytes, std::io::Error>;
pub(super) type Reply = Response<Body>;

/// Docker's client takes the registry for an old one without it.
const API_VERSION: (HeaderName, HeaderValue) =
    (HeaderName::from_static("docker-distribution-api-version"), HeaderValue::from_static("registry/2.0"));

/// The specification's error codes, as far as they occur here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    Denied,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    SizeInvalid,
    RangeInvalid,
    TagInvalid,
    TooManyUploads,
    Unauthorized,
    Unsupported,
    NotFound,
    DiskFull,
    Unknown,
}

impl Code {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadInvalid | Self::RangeInvalid => "BLOB_UPLOAD_INVALID",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::Denied => "DENIED",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::SizeInvalid => "SIZE_INVALID",
            Self::TagInvalid => "TAG_INVALID",
            Self::TooManyUploads => "TOOMANYREQUESTS",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Unsupported => "UNSUPPORTED",
            Self::NotFound => "NOT_FOUND",
            Self::DiskFull | Self::Unknown => "UNKNOWN",
        }
    }

    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::BlobUnknown
            | Self::BlobUploadUnknown
            | Self::ManifestUnknown
            | Self::NameUnknown
            | Self::NotFound => StatusCode::NOT_FOUND,
            Self::BlobUploadInvalid
            | Self::DigestInvalid
            | Self::ManifestBlobUnknown
            | Self::ManifestInvalid
            | Self::NameInvalid
            | Self::TagInvalid => StatusCode::BAD_REQUEST,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::SizeInvalid => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RangeInvalid => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::TooManyUploads => StatusCode::TOO_MANY_REQUESTS,
            Self::Unsupported => StatusCode::METHOD_NOT_ALLOWED,
            Self::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
            Self::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// Why a request was not done, in words for the one who pushes.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) code: Code,
    pub(super) message: String,
}

#[derive(Serialize)]
struct Errors<'a> {
    errors: [ErrorEntry<'a>; 1],
}

#[derive(Serialize)]
struct ErrorEntry<'a> {
    code: &'a str,
    message: &'a str,
}

impl Refusal {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The registry's fault, not the client's.
    pub(super) fn is_ours(&self) -> bool {
        self.code.status().is_server_error()
    }

    pub(super) fn reply(&self) -> Reply {
        let errors = Errors { errors: [ErrorEntry { code: self.code.name(), message: &self.message }] };
        let mut reply = json(&errors);
        *reply.status_mut() = self.code.status();
        if self.code == Code::Unauthorized {
            let challenge = HeaderValue::from_static("Basic realm=\"neap\"");
            reply.headers_mut().insert(http::header::WWW_AUTHENTICATE, challenge);
        }
        reply
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::Digest { .. } => Code::DigestInvalid,
            StoreError::Length { .. } => Code::SizeInvalid,
            StoreError::Full { .. } => Code::DiskFull,
            StoreError::InUse { .. } => Code::Unsupported,
            StoreError::Broken { .. } | StoreError::MediaType { .. } => Code::ManifestInvalid,
            StoreError::Name { .. } => Code::NameInvalid,
            StoreError::NoSuchImage { .. } | StoreError::Missing { .. } | StoreError::Disk { .. } => Code::Unknown,
        };
        Self::new(code, error.to_string())
    }
}

impl From<PutManifestError> for Refusal {
    fn from(error: PutManifestError) -> Self {
        let code = match &error {
            PutManifestError::Reference(_) => Code::TagInvalid,
            PutManifestError::BlobUnknown { .. } => Code::ManifestBlobUnknown,
            PutManifestError::Invalid { problem: StoreError::Digest { .. } } => Code::DigestInvalid,
            PutManifestError::Invalid { .. } => Code::ManifestInvalid,
            PutManifestError::Store { problem } => return Self::from(problem.clone()),
        };
        Self::new(code, error.to_string())
    }
}

pub(super) fn json(value: &impl Serialize) -> Reply {
    let bytes = serde_json::to_vec(value).expect("answers are plain data");
    let mut reply = bytes_reply(StatusCode::OK, bytes);
    reply.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

pub(super) fn empty(status: StatusCode) -> Reply {
    bytes_reply(status, Vec::new())
}

pub(super) fn bytes_reply(status: StatusCode, bytes: Vec<u8>) -> Reply {
    let body = Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync();
    with_body(status, body)
}

pub(super) fn with_body(status: StatusCode, body: Body) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    reply.headers_mut().insert(API_VERSION.0, API_VERSION.1);
    reply
}

/// Sets a header from text that is known to fit into one (digests, paths, numbers).
pub(super) fn header(reply: &mut Reply, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        reply.headers_mut().insert(HeaderName::from_static(name), value);
    }
}
