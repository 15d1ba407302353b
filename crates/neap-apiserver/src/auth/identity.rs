//! From what a connection or a header proves to a user. Knows nothing of permissions.

use super::{AUTHENTICATED, token};
use crate::server::Inner;
use crate::status::{ApiError, Result};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use k8s_openapi::api::authentication::v1::UserInfo;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The user of a request: by bearer token, else by the certificate of the connection, else nobody. A token that is
/// wrong is an error even where nobody would do.
pub(crate) fn of_request(server: &Inner, headers: &HeaderMap, peer: Option<&UserInfo>) -> Result<Option<UserInfo>> {
    match bearer(headers)? {
        None => Ok(peer.cloned()),
        Some(token) => of_token(server, token, &[]).map(Some).ok_or(ApiError::Unauthorized),
    }
}

fn bearer(headers: &HeaderMap) -> Result<Option<&str>> {
    let Some(value) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let value = value.to_str().map_err(|_| ApiError::Unauthorized)?;
    let token = value.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    Ok(token.map(|(_, token)| token.trim()).filter(|token| !token.is_empty()))
}

/// `audiences` empty means this server's own.
pub(crate) fn of_token(server: &Inner, text: &str, audiences: &[String]) -> Option<UserInfo> {
    if let Some(user) = server.config.tokens.get(text) {
        // Such a token is for this server, and for nobody else who asks.
        let own = token::own_audiences(server);
        let meant = audiences.is_empty() || audiences.iter().any(|a| own.contains(a));
        return meant.then(|| with_group(user.clone()));
    }
    token::user_of(server, text, audiences)
}

/// The user of a client certificate that the TLS layer has verified: CN is the name, O are the groups.
pub fn of_certificate(der: &[u8]) -> Option<UserInfo> {
    let (_, cert) = X509Certificate::from_der(der).ok()?;
    let name = cert.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = cert.subject().iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    Some(with_group(UserInfo { username: Some(name), groups: Some(groups), ..UserInfo::default() }))
}

fn with_group(mut user: UserInfo) -> UserInfo {
    let groups = user.groups.get_or_insert_default();
    if !groups.iter().any(|g| g == AUTHENTICATED) {
        groups.push(AUTHENTICATED.to_owned());
    }
    user
}
