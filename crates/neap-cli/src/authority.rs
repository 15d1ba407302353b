//! `neap ca`: the authority that the platform's own certificates come from.

use std::io::Write;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use neap_api::keys::{config, neap};

use crate::connect::connect;
use crate::{Env, Error, Target};

/// Where the authority stands in its ConfigMap.
const KEY: &str = "ca.crt";

#[derive(Debug, clap::Args)]
pub struct Authority {
    #[command(flatten)]
    target: Target,
}

impl Authority {
    pub(crate) async fn run(self, env: &Env, out: &mut (dyn Write + Send)) -> Result<(), Error> {
        let connection = connect(&self.target, env).await?;
        let maps: Api<ConfigMap> = Api::namespaced(connection.client.clone(), config::NAMESPACE);
        let map = maps.get_opt(neap::LOCAL_AUTHORITY).await.map_err(|e| connection.explain(e))?;
        let Some(pem) = map.and_then(|map| map.data?.remove(KEY)) else {
            let message = "this platform has no authority of its own: nothing it serves has asked for a certificate";
            return Err(Error::Refused { message: message.into() });
        };
        Ok(out.write_all(pem.as_bytes())?)
    }
}
