//! Who may do what at the registry. Whoever can push can replace any image that runs here, so that takes being on this
//! machine, or a credential of the platform; everybody else who reaches the listener may pull.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::future::BoxFuture;
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, Method};

use super::reply::{Code, Refusal};

/// Whether a token (or the password that was given for one) is an administrator's of this platform.
pub type Check = Arc<dyn Fn(String) -> BoxFuture<'static, bool> + Send + Sync>;

/// The registry's rules.
#[derive(Clone)]
pub struct Access {
    /// Who asks from this machine needs no password. Not so where pods share the machine's network.
    pub trust_this_machine: bool,
    /// Without it nobody has a password.
    pub check: Option<Check>,
}

impl Default for Access {
    fn default() -> Self {
        Self { trust_this_machine: true, check: None }
    }
}

/// Both ends of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) peer: SocketAddr,
    pub(super) own: SocketAddr,
}

impl Ends {
    /// The kernel lets nobody else speak from a loopback address, or from one of the machine's own.
    fn are_one_machine(self) -> bool {
        let (peer, own) = (self.peer.ip().to_canonical(), self.own.ip().to_canonical());
        peer.is_loopback() || peer == own
    }
}

impl Access {
    /// # Errors
    /// The one sentence that tells what to do instead.
    pub(super) async fn admit(
        &self,
        ends: Ends,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<(), Refusal> {
        // A page of somebody else's, open in a browser on this machine, could push as well as its owner. Browsers say on
        // whose behalf they ask; tools do not.
        if headers.contains_key(http::header::ORIGIN) {
            return Err(Refusal::new(Code::Denied, "this registry is for tools, not for pages in a browser"));
        }
        if let Some(token) = token(headers)
            && let Some(check) = &self.check
        {
            return match check(token).await {
                true => Ok(()),
                false => Err(Refusal::new(Code::Unauthorized, "the platform does not know this password or token")),
            };
        }
        if self.trust_this_machine && ends.are_one_machine() {
            // Nor may such a page read: its own name can be made to point here.
            let host = headers.get(HOST).and_then(|host| host.to_str().ok());
            return match host.is_none_or(is_ours) {
                true => Ok(()),
                false => Err(Refusal::new(
                    Code::Denied,
                    format!("call this registry localhost:{}, or by its address", ends.own.port()),
                )),
            };
        }
        let reads = matches!(*method, Method::GET | Method::HEAD) && path.starts_with("/v2/");
        // Clients ask here first, and show a password only where they are told that one is wanted.
        let asks_for_login = self.check.is_some() && path == "/v2/" && !headers.contains_key(AUTHORIZATION);
        if reads && !asks_for_login {
            return Ok(());
        }
        let here = if self.trust_this_machine {
            format!("push on the platform's own machine, to localhost:{}", ends.own.port())
        } else {
            "pods share this machine's network, so being on it proves nothing".to_owned()
        };
        match &self.check {
            Some(_) => Err(Refusal::new(
                Code::Unauthorized,
                format!("only pulls need no password; {here}, or log in with a token of the platform as the password"),
            )),
            None => Err(Refusal::new(Code::Denied, format!("only pulls are offered to others; {here}"))),
        }
    }
}

/// A name that nobody else can have pointed here: an address, `localhost`, or one without a domain.
fn is_ours(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    name.parse::<IpAddr>().is_ok() || !name.contains('.') || name.ends_with(".localhost")
}

/// `Bearer TOKEN`, or the password of `Basic`, whoever the user says to be.
fn token(headers: &HeaderMap) -> Option<String> {
    let (scheme, rest) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
    pair.split_once(':').map(|(_, password)| password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    async fn check(access: &Access, peer: &str, request: &str, with: &[(&str, &str)], want: &str) {
        let ends = Ends { peer: format!("{peer}:40000").parse().unwrap(), own: "192.0.2.1:5000".parse().unwrap() };
        let (method, path) = request.split_once(' ').unwrap();
        let answer = access.admit(ends, &method.parse().unwrap(), path, &headers(with)).await;
        let got = answer.map_or_else(|refusal| refusal.code.name(), |()| "");
        assert_eq!(got, want, "{peer} {request} {with:?}");
    }

    #[tokio::test]
    async fn who_is_elsewhere_may_pull() {
        let access = Access::default();
        for (peer, push) in [
            ("127.0.0.1", ""),
            ("[::1]", ""),
            ("[::ffff:127.0.0.1]", ""),
            ("192.0.2.1", ""),
            ("192.0.2.7", "DENIED"),
            ("198.19.0.2", "DENIED"),
        ] {
            for pull in ["GET /v2/", "HEAD /v2/x/manifests/v1", "GET /v2/x/blobs/sha256:1"] {
                check(&access, peer, pull, &[], "").await;
            }
            for other in [
                "POST /v2/x/blobs/uploads/",
                "PUT /v2/x/manifests/v1",
                "DELETE /v2/x/manifests/v1",
                "POST /neap/load",
                "GET /neap/images",
                "DELETE /neap/images",
            ] {
                check(&access, peer, other, &[], push).await;
            }
        }
        // Nobody has a password yet, so one opens nothing.
        check(&access, "192.0.2.7", "POST /neap/load", &[("authorization", "Bearer x")], "DENIED").await;
    }

    #[tokio::test]
    async fn a_token_of_the_platform_opens_it() {
        let known: Check = Arc::new(|token| Box::pin(async move { token == "secret" }));
        for access in [
            Access { check: Some(known.clone()), ..Access::default() },
            Access { trust_this_machine: false, check: Some(known) },
        ] {
            let basic = format!("Basic {}", STANDARD.encode("anybody:secret"));
            let stale = format!("Basic {}", STANDARD.encode("anybody:guess"));
            for (with, want) in [("Bearer secret", ""), (&*basic, ""), (&*stale, "UNAUTHORIZED"), ("", "UNAUTHORIZED")]
            {
                let with: Vec<(&str, &str)> =
                    [("authorization", with)].into_iter().filter(|w| !w.1.is_empty()).collect();
                check(&access, "192.0.2.7", "POST /v2/x/blobs/uploads/", &with, want).await;
                check(&access, "192.0.2.7", "GET /v2/", &with, want).await;
            }
            check(&access, "192.0.2.7", "GET /v2/x/manifests/v1", &[], "").await;
            let here = if access.trust_this_machine { "" } else { "UNAUTHORIZED" };
            check(&access, "127.0.0.1", "POST /neap/load", &[], here).await;
        }
    }

    #[tokio::test]
    async fn pages_of_others_reach_nothing() {
        let access = Access::default();
        for (host, want) in [
            ("localhost:5000", ""),
            ("127.0.0.1:5000", ""),
            ("[::1]:5000", ""),
            ("box:5000", ""),
            ("rebound.example:5000", "DENIED"),
        ] {
            check(&access, "127.0.0.1", "GET /v2/x/manifests/v1", &[("host", host)], want).await;
        }
        let origin = [("host", "localhost:5000"), ("origin", "https://x.example")];
        check(&access, "127.0.0.1", "POST /neap/load", &origin, "DENIED").await;
    }
}
