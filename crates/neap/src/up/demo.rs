//! `--demo`: the bundled sample as a service, from an image packed out of this very binary.

use std::time::Duration;

use kube::api::{Patch, PatchParams};
use kube::runtime::wait::await_condition;
use kube::{Api, ResourceExt};
use neap_api::condition::{self, READY};
use neap_api::serving::Service;
use neap_api::{Condition, ConditionStatus};
use neap_runtime::image::ImageConfig;
use serde_json::json;

use super::platform::{Error, Platform};
use crate::sample;

const NAME: &str = "hello";
/// Repository and tag in the platform's own registry.
const IMAGE: &str = "neap/sample:demo";
/// Longer than any machine needs that can run at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// Puts the sample's image into the store and deploys it; a line that calls it.
///
/// # Errors
/// It could not be packed, or was not ready in time, with the reason its conditions give.
pub(super) async fn deploy(platform: &Platform) -> Result<String, Error> {
    let image = format!("{}/{IMAGE}", platform.registry());
    let files =
        tokio::task::spawn_blocking(sample::pack).await.expect("packing does not panic").map_err(Error::Sample)?;
    let files: Vec<(&str, u32, &[u8])> =
        files.iter().map(|(path, mode, bytes)| (path.to_str().unwrap_or_default(), *mode, bytes.as_slice())).collect();
    let config = ImageConfig {
        entrypoint: vec![sample::EXECUTABLE.into(), "sample".into()],
        user: "65532:65532".into(),
        ..Default::default()
    };
    platform.images().import_files(&image, &files, config).await.map_err(Error::Images)?;
    let service = json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": NAME},
        "spec": {"template": {"spec": {"containers": [{"image": image}]}}},
    });
    let services: Api<Service> = Api::namespaced(platform.client(), "default");
    let applied = services.patch(NAME, &PatchParams::apply("neap-demo").force(), &Patch::Apply(&service)).await?;
    let ready = await_condition(services.clone(), NAME, |found: Option<&Service>| found.is_some_and(is_ready));
    match tokio::time::timeout(PATIENCE, ready).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(Error::Demo { why: error.to_string() }),
        Err(_) => {
            let found = services.get(&applied.name_any()).await?;
            let conditions = found.status.map(|s| s.conditions).unwrap_or_default();
            return Err(Error::Demo { why: condition::find(&conditions, READY).map(words).unwrap_or_default() });
        }
    }
    let url = services.get(NAME).await?.status.and_then(|s| s.url).unwrap_or_default();
    Ok(format!("try: curl {url}"))
}

fn is_ready(service: &Service) -> bool {
    let Some(status) = &service.status else { return false };
    Some(status.observed_generation) == service.metadata.generation
        && condition::find(&status.conditions, READY).is_some_and(|c| c.status == ConditionStatus::True)
}

fn words(condition: &Condition) -> String {
    format!("{} {}", condition.reason, condition.message)
}
