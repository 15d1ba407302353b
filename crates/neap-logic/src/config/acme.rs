//! The keys `acme.…` of `config-neap`: from which authority public certificates are had, and how.

use super::reader::Reader;

/// `acme.directory` may name these by a word.
const KNOWN: [(&str, &str); 2] = [
    ("letsencrypt", "https://acme-v02.api.letsencrypt.org/directory"),
    ("letsencrypt-staging", "https://acme-staging-v02.api.letsencrypt.org/directory"),
];
/// `acme.max-orders`: orders open at once. An authority takes 300 in three hours of one account; ten at a time keep a first
/// start with many domains well below what it takes at once.
pub const MAX_ORDERS: usize = 10;
/// The most anybody may ask for: each open order is a task and a Secret.
const MOST_ORDERS: usize = 100;

/// An authority that speaks ACME.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acme {
    /// Its directory.
    pub directory: String,
    /// Where it may write to.
    pub email: Option<String>,
    /// How control over a name is shown; after a failure the next one is tried.
    pub challenges: Vec<ChallengeKind>,
    /// The profile of certificates to ask for.
    pub profile: Option<String>,
    /// The account at the authority that ours is bound to: key id, and the name of the Secret in `knative-serving` whose
    /// `hmac-key` it goes with.
    pub external_account: Option<(String, String)>,
    /// Authorities the directory's own certificate may come from, beside those the system trusts; PEM.
    pub root_ca: String,
    /// Orders open at once.
    pub max_orders: usize,
}

impl Acme {
    /// The authority with this directory, and nothing else asked for.
    pub fn at(directory: impl Into<String>) -> Self {
        Self {
            directory: directory.into(),
            email: None,
            challenges: ChallengeKind::ALL.to_vec(),
            profile: None,
            external_account: None,
            root_ca: String::new(),
            max_orders: MAX_ORDERS,
        }
    }
}

/// How control over a name is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChallengeKind {
    /// A text under a path, over plain HTTP on port 80 (RFC 8555, 8.3).
    Http01,
    /// A certificate in a handshake, on port 443 (RFC 8737).
    TlsAlpn01,
}

impl ChallengeKind {
    /// In the order they are tried.
    pub const ALL: [Self; 2] = [Self::Http01, Self::TlsAlpn01];

    /// The word of the protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
        }
    }
}

pub(super) fn parse(r: &mut Reader<'_>) -> Option<Acme> {
    let directory = r.with(&["acme.directory"], None, "letsencrypt, letsencrypt-staging or an https URL", directory);
    let some = |text: String| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    let acme = Acme {
        directory: String::new(),
        email: r.with(&["acme.email"], None, "one e-mail address", |text| match text {
            "" => Some(None),
            text => (text.contains('@') && !text.contains(|c: char| c.is_whitespace() || c == ','))
                .then(|| Some(text.to_owned())),
        }),
        challenges: r.with(
            &["acme.challenges"],
            ChallengeKind::ALL.to_vec(),
            "http-01, tls-alpn-01 or both with a comma between",
            challenges,
        ),
        profile: some(r.text(&["acme.profile"], "")),
        external_account: None,
        root_ca: r.text(&["acme.root-ca"], ""),
        max_orders: r.with(&["acme.max-orders"], MAX_ORDERS, "a number from 1 to 100", |text| {
            text.parse().ok().filter(|n| (1..=MOST_ORDERS).contains(n))
        }),
    };
    let (id, secret) = (some(r.text(&["acme.eab-key-id"], "")), some(r.text(&["acme.eab-secret"], "")));
    let external_account = match (id, secret) {
        (None, None) => None,
        (Some(id), Some(secret)) => Some((id, secret)),
        _ => {
            r.mistake("acme.eab-key-id", "acme.eab-key-id and acme.eab-secret go together");
            None
        }
    };
    Some(Acme { directory: directory?, external_account, ..acme })
}

/// An empty one is no authority.
fn directory(text: &str) -> Option<Option<String>> {
    if text.is_empty() {
        return Some(None);
    }
    if let Some((_, url)) = KNOWN.iter().find(|(word, _)| *word == text) {
        return Some(Some((*url).to_owned()));
    }
    let host = text.strip_prefix("https://")?.split('/').next()?;
    (!host.is_empty() && !text.contains(char::is_whitespace)).then(|| Some(text.to_owned()))
}

fn challenges(text: &str) -> Option<Vec<ChallengeKind>> {
    let mut kinds = Vec::new();
    for word in text.split(',').map(str::trim) {
        let kind = ChallengeKind::ALL.into_iter().find(|kind| kind.as_str() == word)?;
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    Some(kinds)
}
