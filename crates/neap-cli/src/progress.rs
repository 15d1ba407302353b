//! What happens while a user waits: a spinner with a sentence on a terminal, one line per change elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::Env;

const TICK: Duration = Duration::from_millis(100);

pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    last: String,
}

impl Progress {
    pub(crate) fn new(env: &Env) -> Self {
        let bar = env.terminal.then(|| {
            let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let bar = ProgressBar::new_spinner().with_style(style);
            bar.enable_steady_tick(TICK);
            bar
        });
        Self { bar, last: String::new() }
    }

    pub(crate) fn say(&mut self, sentence: &str) {
        if self.last == sentence {
            return;
        }
        sentence.clone_into(&mut self.last);
        match &self.bar {
            Some(bar) => bar.set_message(sentence.to_owned()),
            None => eprintln!("{sentence}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
