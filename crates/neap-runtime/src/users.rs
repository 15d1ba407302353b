//! Which numbers a user's name stands for, by the texts of a container's `/etc/passwd` and `/etc/group`.
//!
//! Pure: the caller reads the files (inside the container's root, where links are harmless).

/// The kernel takes 4294967295 for "leave it as it is", and others have had their troubles with what looks negative.
const MAX_ID: u32 = i32::MAX as u32;

/// Who a process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: Option<String>,
}

/// Resolves `user`, `uid`, `user:group`, `uid:gid` or nothing (root).
pub(crate) fn resolve(wanted: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let (user, given_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number: Option<u32> = user.parse().ok();
    let entry = passwd.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|fields| {
        fields.len() >= 6
            && match number {
                Some(uid) => fields[2].parse() == Ok(uid),
                None => fields[0] == user,
            }
    });
    let uid = match (&entry, number) {
        (Some(fields), _) => fields[2].parse().map_err(|_| format!("/etc/passwd gives user {user} no number"))?,
        (None, Some(uid)) => uid,
        (None, None) => return Err(format!("the image's /etc/passwd has no user {user}")),
    };
    let gid = match given_group {
        Some(name) => match name.parse() {
            Ok(gid) => gid,
            Err(_) => group_number(name, group).ok_or_else(|| format!("the image's /etc/group has no group {name}"))?,
        },
        None => entry.as_ref().and_then(|fields| fields[3].parse().ok()).unwrap_or(0),
    };
    let mut groups: Vec<u32> = Vec::new();
    if let Some(fields) = &entry {
        for line in group.lines() {
            let parts: Vec<_> = line.split(':').collect();
            if let [_, _, number, members] = parts[..]
                && members.split(',').any(|m| m == fields[0])
                && let Ok(number) = number.parse()
            {
                groups.push(number);
            }
        }
    }
    if !groups.contains(&gid) {
        groups.insert(0, gid);
    }
    for (id, of) in [(uid, "user"), (gid, "group")] {
        if id > MAX_ID {
            return Err(format!("{of} numbers go to {MAX_ID}, and {id} is greater"));
        }
    }
    groups.retain(|group| *group <= MAX_ID);
    let home = entry.map(|fields| fields[5].to_owned()).filter(|h| !h.is_empty());
    Ok(Identity { uid, gid, groups, home })
}

fn group_number(name: &str, group: &str) -> Option<u32> {
    group.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/var/www:/bin/false\nbad line\nsly:x:4294967295:7::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nlogs:x:40:other,web\nodd:x:4294967295:web\n";

    type Expected<'a> = (u32, u32, &'a [u32], Option<&'a str>);

    fn check(wanted: &str, expected: Result<Expected<'_>, &str>) {
        let found = resolve(wanted, PASSWD, GROUP);
        let expected = expected
            .map(|(uid, gid, groups, home)| Identity {
                uid,
                gid,
                groups: groups.to_vec(),
                home: home.map(str::to_owned),
            })
            .map_err(str::to_owned);
        assert_eq!(found, expected, "{wanted}");
    }

    #[test]
    fn users_and_groups_by_name_and_number() {
        check("", Ok((0, 0, &[0], Some("/root"))));
        check("0", Ok((0, 0, &[0], Some("/root"))));
        check("web", Ok((33, 34, &[34, 40], Some("/var/www"))));
        check("33", Ok((33, 34, &[34, 40], Some("/var/www"))));
        check("web:logs", Ok((33, 40, &[40], Some("/var/www"))));
        check("web:7", Ok((33, 7, &[7, 40], Some("/var/www"))));
        check("2020", Ok((2020, 0, &[0], None)));
        check("2020:2021", Ok((2020, 2021, &[2021], None)));
        check(":34", Ok((0, 34, &[34], Some("/root"))));
        check("nobody", Err("the image's /etc/passwd has no user nobody"));
        // To setresuid this number means "stay root".
        check("4294967295", Err("user numbers go to 2147483647, and 4294967295 is greater"));
        check("sly", Err("user numbers go to 2147483647, and 4294967295 is greater"));
        check("web:4294967295", Err("group numbers go to 2147483647, and 4294967295 is greater"));
        check("2147483647", Ok((2_147_483_647, 0, &[0], None)));
        check("4294967296", Err("the image's /etc/passwd has no user 4294967296"));
        check("web:none", Err("the image's /etc/group has no group none"));
    }
}
