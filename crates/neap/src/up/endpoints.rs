//! `endpoints.json`: where everything is, for scripts and for the client verbs.

use std::net::SocketAddr;

use serde_json::json;

/// The addresses that were bound, whatever ports were asked for.
#[derive(Clone, Debug)]
pub struct Endpoints {
    pub api: SocketAddr,
    pub http: SocketAddr,
    pub https: SocketAddr,
    pub registry: SocketAddr,
    pub metrics: SocketAddr,
}

impl Endpoints {
    pub fn api_url(&self) -> String {
        format!("https://{}", dialable(self.api))
    }

    pub fn http_url(&self) -> String {
        format!("http://{}", dialable(self.http))
    }

    pub fn https_url(&self) -> String {
        format!("https://{}", dialable(self.https))
    }

    /// What is written to the file: the shape is a contract.
    pub fn json(&self) -> String {
        let value = json!({
            "api": self.api_url(),
            "http": self.http_url(),
            "https": self.https_url(),
            "registry": dialable(self.registry).to_string(),
            "metrics": format!("http://{}/metrics", dialable(self.metrics)),
        });
        format!("{value:#}\n")
    }
}

/// Listening everywhere is listening on loopback too.
pub(super) fn dialable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip([127, 0, 0, 1].into());
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_the_promised_shape() {
        let at = |port| SocketAddr::from(([0, 0, 0, 0], port));
        let endpoints = Endpoints { api: at(1), http: at(2), https: at(3), registry: at(4), metrics: at(5) };
        let value: serde_json::Value = serde_json::from_str(&endpoints.json()).expect("JSON");
        assert_eq!(value["api"], "https://127.0.0.1:1");
        assert_eq!(value["http"], "http://127.0.0.1:2");
        assert_eq!(value["registry"], "127.0.0.1:4");
    }
}
