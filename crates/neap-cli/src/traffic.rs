//! `neap traffic`: who gets how much, shown and changed.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use kube::Api;
use kube::api::PostParams;
use neap_api::serving::{Service, TrafficTarget};

use crate::connect::connect;
use crate::get::columns;
use crate::progress::Progress;
use crate::{Env, Error, Target, wait};

/// Stands for the latest ready revision.
const LATEST: &str = "@latest";
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Debug, clap::Args)]
pub struct Traffic {
    #[command(flatten)]
    target: Target,
    /// The service.
    name: String,
    /// Shares, such as hello-00001=80 @latest=20; together 100. Whoever is not named gets nothing.
    #[arg(value_name = "REVISION=PERCENT")]
    shares: Vec<String>,
    /// Give a revision a name and a URL of its own.
    #[arg(long, value_name = "REVISION=TAG")]
    tag: Vec<String>,
    /// Take a tag away.
    #[arg(long, value_name = "TAG")]
    untag: Vec<String>,
}

impl Traffic {
    pub(crate) async fn run(self, env: &Env, out: &mut (dyn Write + Send)) -> Result<(), Error> {
        let connection = connect(&self.target, env).await?;
        let api: Api<Service> = Api::namespaced(connection.client.clone(), &connection.namespace);
        let found = api.get_opt(&self.name).await.map_err(|e| connection.explain(e))?;
        let missing =
            || Error::NotFound { kind: "service", name: self.name.clone(), namespace: connection.namespace.clone() };
        let mut service = found.ok_or_else(missing)?;
        if !(self.shares.is_empty() && self.tag.is_empty() && self.untag.is_empty()) {
            service.spec.traffic = changed(&service.spec.traffic, &self.shares, &self.tag, &self.untag)?;
            api.replace(&self.name, &PostParams::default(), &service).await.map_err(|e| connection.explain(e))?;
            let mut progress = Progress::new(env);
            progress.say("moving traffic");
            service = wait::ready(&connection, &self.name, PATIENCE, &mut progress).await?;
        }
        let mut lines = vec![["REVISION", "PERCENT", "TAG", "LATEST", "URL"].map(str::to_owned).to_vec()];
        for target in service.status.iter().flat_map(|s| &s.traffic) {
            lines.push(vec![
                target.revision_name.clone(),
                target.percent.unwrap_or(0).to_string(),
                target.tag.clone(),
                target.latest_revision.unwrap_or(false).to_string(),
                target.url.clone().unwrap_or_default(),
            ]);
        }
        Ok(out.write_all(columns(&lines).as_bytes())?)
    }
}

/// New targets from old ones and what was asked. Tags stay where they are unless they are moved or taken away.
fn changed(
    old: &[TrafficTarget],
    shares: &[String],
    tags: &[String],
    untag: &[String],
) -> Result<Vec<TrafficTarget>, Error> {
    let mut percents: BTreeMap<String, i64> = BTreeMap::new();
    if shares.is_empty() {
        for target in old {
            *percents.entry(key(target)).or_default() += target.percent.unwrap_or(0);
        }
    }
    for share in shares {
        let usage = || {
            Error::Usage(format!(
                "{share:?} is no share: write REVISION=PERCENT, with {LATEST} for the latest revision"
            ))
        };
        let (revision, percent) = share.split_once('=').ok_or_else(usage)?;
        let percent = percent.trim_end_matches('%').parse().map_err(|_| usage())?;
        if percents.insert(revision.to_owned(), percent).is_some() {
            return Err(Error::Usage(format!("{revision} is named twice: give it one share")));
        }
    }
    let sum: i64 = percents.values().sum();
    if sum != 100 {
        return Err(Error::Usage(format!("the shares are {sum} % together: make them 100")));
    }
    let mut tagged: BTreeMap<String, String> = BTreeMap::new();
    for target in old.iter().filter(|t| !t.tag.is_empty() && !untag.contains(&t.tag)) {
        tagged.insert(target.tag.clone(), key(target));
    }
    for tag in untag {
        if !old.iter().any(|t| t.tag == *tag) {
            return Err(Error::Usage(format!("there is no tag {tag:?} to take away")));
        }
    }
    for tag in tags {
        let usage = || Error::Usage(format!("{tag:?} names no tag: write REVISION=TAG"));
        let (revision, tag) = tag.split_once('=').ok_or_else(usage)?;
        tagged.insert(tag.to_owned(), revision.to_owned());
    }
    let mut targets = Vec::new();
    for (tag, revision) in tagged {
        // A revision's share goes with its first tag.
        let percent = percents.remove(&revision).unwrap_or(0);
        targets.push(target(&revision, percent, &tag));
    }
    targets.extend(
        percents
            .into_iter()
            .filter(|(_, percent)| *percent > 0)
            .map(|(revision, percent)| target(&revision, percent, "")),
    );
    Ok(targets)
}

fn key(target: &TrafficTarget) -> String {
    if target.revision_name.is_empty() { LATEST.to_owned() } else { target.revision_name.clone() }
}

fn target(revision: &str, percent: i64, tag: &str) -> TrafficTarget {
    let latest = revision == LATEST;
    TrafficTarget {
        revision_name: if latest { String::new() } else { revision.to_owned() },
        latest_revision: Some(latest),
        percent: Some(percent),
        tag: tag.to_owned(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(old: &[(&str, i64, &str)], shares: &str, tag: &str, untag: &str, want: Result<&str, &str>) {
        let old: Vec<_> = old.iter().map(|(r, p, t)| target(r, *p, t)).collect();
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let got = changed(&old, &words(shares), &words(tag), &words(untag)).map(|targets| {
            let row = |t: &TrafficTarget| format!("{}={}:{}", key(t), t.percent.unwrap_or(0), t.tag);
            targets.iter().map(row).collect::<Vec<_>>().join(" ")
        });
        match (got, want) {
            (Ok(got), Ok(want)) => assert_eq!(got, want),
            (Err(got), Err(want)) => assert!(got.to_string().contains(want), "{got}"),
            (got, want) => panic!("{got:?} instead of {want:?}"),
        }
    }

    #[test]
    fn shares_and_tags() {
        let latest = &[(LATEST, 100, "")];
        check(latest, "a=80 @latest=20", "", "", Ok("@latest=20: a=80:"));
        check(latest, "", "a=old", "", Ok("a=0:old @latest=100:"));
        check(&[("a", 0, "old"), (LATEST, 100, "")], "a=100", "", "", Ok("a=100:old"));
        check(&[("a", 0, "old"), (LATEST, 100, "")], "", "", "old", Ok("@latest=100:"));
        check(&[("a", 50, "x"), ("b", 50, "")], "", "b=x", "", Ok("b=50:x a=50:"));
        check(latest, "a=80", "", "", Err("80 % together"));
        check(latest, "a=80 a=20", "", "", Err("named twice"));
        check(latest, "a", "", "", Err("REVISION=PERCENT"));
        check(latest, "", "", "nope", Err("no tag"));
    }
}
