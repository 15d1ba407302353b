//! Query parameters of the sample: percent-decoded on demand.

use std::time::Duration;

pub(super) struct Query<'a>(&'a str);

impl<'a> Query<'a> {
    pub(super) fn new(query: &'a str) -> Self {
        Self(query)
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.0
            .split('&')
            .find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name))
            .map(|(_, value)| decode(value))
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    /// Milliseconds, at most `longest`; zero when absent.
    pub(super) fn millis(&self, name: &str, longest: Duration) -> Duration {
        Duration::from_millis(self.number(name).unwrap_or(0)).min(longest)
    }
}

fn decode(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes().iter();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let hex = rest.as_slice().get(..2).and_then(|h| std::str::from_utf8(h).ok());
                match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
                    Some(decoded) => {
                        bytes.push(decoded);
                        rest.nth(1);
                    }
                    None => bytes.push(b'%'),
                }
            }
            other => bytes.push(*other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let query = Query::new("name=J%C3%BCrgen+M&ms=250&bad=%zz&n=x");
        assert_eq!(query.text("name").as_deref(), Some("Jürgen M"));
        assert_eq!(query.text("bad").as_deref(), Some("%zz"));
        assert_eq!(query.millis("ms", Duration::from_millis(100)), Duration::from_millis(100));
        assert_eq!((query.number("n"), query.number("absent")), (None, None));
    }
}
