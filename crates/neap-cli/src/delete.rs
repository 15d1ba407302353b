//! `neap delete`: services go, with everything that was made for them.

use std::io::Write;

use kube::Api;
use kube::api::DeleteParams;
use neap_api::serving::Service;

use crate::connect::connect;
use crate::{Env, Error, Target};

#[derive(Debug, clap::Args)]
pub struct Delete {
    #[command(flatten)]
    target: Target,
    /// The services.
    #[arg(required = true)]
    names: Vec<String>,
}

impl Delete {
    pub(crate) async fn run(self, env: &Env, out: &mut (dyn Write + Send)) -> Result<(), Error> {
        let connection = connect(&self.target, env).await?;
        let api: Api<Service> = Api::namespaced(connection.client.clone(), &connection.namespace);
        let mut missing = None;
        for name in self.names {
            match api.delete(&name, &DeleteParams::background()).await {
                Ok(_) => writeln!(out, "service {name} deleted")?,
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    // The others still go.
                    missing = Some(Error::NotFound { kind: "service", name, namespace: connection.namespace.clone() });
                }
                Err(error) => return Err(connection.explain(error)),
            }
        }
        missing.map_or(Ok(()), Err)
    }
}
