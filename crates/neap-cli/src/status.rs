//! `neap status`: whether the platform is well.

use std::io::Write;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use neap_api::ConditionStatus;
use neap_api::condition::{self, READY};
use neap_api::serving::Service;

use crate::connect::connect;
use crate::{Env, Error, Target};

#[derive(Debug, clap::Args)]
pub struct Status {
    #[command(flatten)]
    target: Target,
}

impl Status {
    pub(crate) async fn run(self, env: &Env, out: &mut (dyn Write + Send)) -> Result<(), Error> {
        let connection = connect(&self.target, env).await?;
        let all = ListParams::default();
        let version = connection.client.apiserver_version().await.map_err(|e| connection.explain(e))?;
        let nodes = Api::<Node>::all(connection.client.clone()).list(&all).await.map_err(|e| connection.explain(e))?;
        let services =
            Api::<Service>::all(connection.client.clone()).list(&all).await.map_err(|e| connection.explain(e))?;
        let pods = Api::<Pod>::all(connection.client.clone()).list(&all).await.map_err(|e| connection.explain(e))?;
        writeln!(out, "platform   {} at {}", version.git_version, connection.address)?;
        for node in &nodes {
            let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
            let ready = conditions.into_iter().find(|c| c.type_ == "Ready");
            let is = if ready.is_some_and(|c| c.status == "True") { "is ready" } else { "is not ready" };
            let message = ready.and_then(|c| c.message.as_deref()).unwrap_or("it has not said anything yet");
            writeln!(out, "node       {} {is}; {message}", node.name_any())?;
        }
        let awake = pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none()).count();
        let unready: Vec<_> = services.iter().filter_map(why_not).collect();
        writeln!(
            out,
            "services   {} of {} ready, {awake} {} awake",
            services.items.len() - unready.len(),
            services.items.len(),
            if awake == 1 { "pod" } else { "pods" }
        )?;
        for (name, why) in &unready {
            writeln!(out, "           {name}: {why}")?;
        }
        if unready.is_empty() { Ok(()) } else { Err(Error::Refused { message: "not every service is ready".into() }) }
    }
}

fn why_not(service: &Service) -> Option<(String, String)> {
    let ready = service.status.as_ref().and_then(|s| condition::find(&s.conditions, READY));
    if ready.is_some_and(|c| c.status == ConditionStatus::True) {
        return None;
    }
    let why =
        ready.map(|c| if c.message.is_empty() { c.reason.clone() } else { c.message.clone() }).unwrap_or_default();
    let why = if why.is_empty() { "not looked at yet".to_owned() } else { why };
    Some((format!("{}/{}", service.namespace().unwrap_or_default(), service.name_any()), why))
}
