//! `neap deploy`: from flags or a file to a service that is ready.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use neap_api::serving::Service;
use serde_json::Value;

use crate::connect::{Connection, connect};
use crate::manifest::{self, Flags, OF_A_SERVICE};
use crate::progress::Progress;
use crate::wait;
use crate::{Env, Error, Target};

/// Who owns the fields that `deploy` sets (server-side apply).
const MANAGER: &str = "neap";
/// Attempts against others who write the same service.
const TRIES: u32 = 5;

#[derive(Debug, clap::Args)]
pub struct Deploy {
    #[command(flatten)]
    target: Target,
    /// Name of the service.
    #[arg(required_unless_present = "file")]
    name: Option<String>,
    #[command(flatten)]
    flags: Flags,
    /// A service in YAML or JSON instead of flags; `-` is standard input.
    #[arg(short, long, value_name = "FILE", conflicts_with_all = OF_A_SERVICE)]
    file: Option<PathBuf>,
    /// Give up whatever an earlier deploy set and this one does not name.
    #[arg(long, conflicts_with = "file")]
    replace: bool,
    /// Answer at once instead of waiting for the service to be ready.
    #[arg(long)]
    no_wait: bool,
    /// How long to wait, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    wait_timeout: u64,
}

/// A service as the API has it after a deploy.
struct Written {
    name: String,
    what: &'static str,
}

impl Deploy {
    pub(crate) async fn run(self, env: &Env, out: &mut (dyn Write + Send)) -> Result<(), Error> {
        if let Some(path) = &self.file {
            let manifests = manifest::read(path)?;
            let connection = connect(&self.target, env).await?;
            for manifest in manifests {
                // As kubectl: the flag, else what the file says, else the context.
                let own = manifest["metadata"]["namespace"].as_str().filter(|_| self.target.namespace.is_none());
                let connection = connection.within(own);
                let written = apply(&connection, manifest).await?;
                self.follow(&connection, written, env, out).await?;
            }
            return Ok(());
        }
        let name = self.name.as_deref().unwrap_or_default();
        // What is wrong with the flags is told without asking anybody.
        self.flags.change(&mut Value::Object(Default::default()))?;
        let connection = connect(&self.target, env).await?;
        let written = match self.replace {
            true => apply(&connection, self.flags.service(name)?).await?,
            false => self.change(&connection, name).await?,
        };
        self.follow(&connection, written, env, out).await
    }

    /// Changes what the flags name, or makes the service.
    async fn change(&self, connection: &Connection, name: &str) -> Result<Written, Error> {
        let api = services(connection);
        let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
        let mut tries = 0;
        loop {
            let held = api.get_opt(name).await.map_err(|e| connection.explain(e))?;
            let before = held.as_ref().map(generation);
            let written = match held {
                Some(mut object) => {
                    self.flags.change(&mut object.data["spec"]["template"])?;
                    api.replace(name, &params, &object).await
                }
                None => {
                    let object = serde_json::from_value(self.flags.service(name)?).map_err(std::io::Error::from)?;
                    api.create(&params, &object).await
                }
            };
            match written {
                Ok(object) => return Ok(Written { name: object.name_any(), what: word(before, generation(&object)) }),
                // Somebody else was quicker: what they wrote is changed then.
                Err(kube::Error::Api(status)) if status.code == 409 && tries < TRIES => tries += 1,
                Err(error) => return Err(connection.explain(error)),
            }
        }
    }

    async fn follow(
        &self,
        connection: &Connection,
        written: Written,
        env: &Env,
        out: &mut (dyn Write + Send),
    ) -> Result<(), Error> {
        let Written { name, what } = written;
        if self.no_wait {
            return Ok(writeln!(out, "service {name} {what}")?);
        }
        let mut progress = Progress::new(env);
        progress.say("waiting for the controllers");
        let ready = wait::ready(connection, &name, Duration::from_secs(self.wait_timeout), &mut progress).await?;
        drop(progress);
        let status = ready.status.unwrap_or_default();
        let revision = status.latest_ready_revision_name;
        let url = status.url.unwrap_or_default();
        Ok(writeln!(out, "service {name} {what}, revision {revision} is ready at\n{url}")?)
    }
}

/// Makes a service exactly what is said here, as far as `deploy` has a say in it.
async fn apply(connection: &Connection, manifest: Value) -> Result<Written, Error> {
    let name = manifest["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let api = services(connection);
    let before = api.get_opt(&name).await.map_err(|e| connection.explain(e))?;
    // What a user typed wins over what anybody else set.
    let params = PatchParams::apply(MANAGER).force();
    let applied = api.patch(&name, &params, &Patch::Apply(&manifest)).await.map_err(|e| connection.explain(e))?;
    let what = word(before.as_ref().map(generation), generation(&applied));
    Ok(Written { name, what })
}

/// Whole objects, fields included that no type here knows.
fn services(connection: &Connection) -> Api<DynamicObject> {
    let resource = ApiResource::erase::<Service>(&());
    Api::namespaced_with(connection.client.clone(), &connection.namespace, &resource)
}

fn generation(object: &DynamicObject) -> i64 {
    object.metadata.generation.unwrap_or_default()
}

fn word(before: Option<i64>, after: i64) -> &'static str {
    match before {
        None => "created",
        Some(before) if before == after => "is unchanged",
        Some(_) => "updated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        deploy: Deploy,
    }

    #[test]
    fn a_file_and_flags_do_not_go_together() {
        for words in ["-f x", "-f x --no-wait", "hello --image i"] {
            Line::try_parse_from(["deploy"].into_iter().chain(words.split_whitespace())).expect(words);
        }
        for flags in ["hello", "--env A=B", "--min 1", "--limit cpu=1", "--timeout 3", "--replace", "-- x"] {
            let words = ["deploy", "-f", "x"].into_iter().chain(flags.split_whitespace());
            Line::try_parse_from(words).expect_err(flags);
        }
    }
}
