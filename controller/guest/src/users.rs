//! Who the workload runs as: the OCI `User` against the image's passwd and group files.

/// Numbers and home of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups, sorted.
    pub groups: Vec<u32>,
    /// Home directory; `/` when the passwd file does not know the user.
    pub home: String,
}

/// A name that the image does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownUser {
    /// Not in passwd, not a number.
    #[error("the image's /etc/passwd has no user {0:?}")]
    User(String),
    /// Not in group, not a number.
    #[error("the image's /etc/group has no group {0:?}")]
    Group(String),
}

/// Finds a user as the OCI image specification says: `user`, `uid`, `user:group`, `uid:gid`,
/// `uid:group`, `user:gid`. Supplementary groups come from the group file when no group was named.
///
/// # Errors
/// A name that is in neither file.
pub fn find(spec: &str, passwd: &str, group: &str) -> Result<User, UnknownUser> {
    let (name, group_name) = match spec.split_once(':') {
        Some((name, group_name)) => (name, Some(group_name).filter(|g| !g.is_empty())),
        None => (spec, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let known = entry(name, passwd).or_else(|| name.parse::<u32>().ok().and_then(|uid| entry_of(uid, passwd)));
    let (uid, primary, home, login) = match known {
        Some(known) => known,
        None => match name.parse::<u32>() {
            Ok(uid) => (uid, 0, "/".to_owned(), None),
            Err(_) => return Err(UnknownUser::User(name.to_owned())),
        },
    };
    let gid = match group_name {
        None => primary,
        Some(wanted) => match groups(group).find(|(n, ..)| *n == wanted) {
            Some((_, gid, _)) => gid,
            None => wanted.parse().map_err(|_| UnknownUser::Group(wanted.to_owned()))?,
        },
    };
    let mut supplementary: Vec<u32> = match (group_name, &login) {
        (None, Some(login)) => groups(group)
            .filter(|(_, _, members)| members.split(',').any(|m| m == login))
            .map(|(_, gid, _)| gid)
            .collect(),
        _ => Vec::new(),
    };
    supplementary.retain(|g| *g != gid);
    supplementary.sort_unstable();
    supplementary.dedup();
    Ok(User {
        uid,
        gid,
        groups: supplementary,
        home,
    })
}

type Known = (u32, u32, String, Option<String>);

fn entries(passwd: &str) -> impl Iterator<Item = Known> {
    passwd.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let home = fields.get(5).filter(|h| h.starts_with('/')).unwrap_or(&"/");
        let login = fields.first().filter(|n| !n.is_empty())?;
        let number = |at: usize| fields.get(at).and_then(|f| f.parse().ok());
        Some((number(2)?, number(3)?, (*home).to_owned(), Some((*login).to_owned())))
    })
}

fn entry(name: &str, passwd: &str) -> Option<Known> {
    entries(passwd).find(|(.., login)| login.as_deref() == Some(name))
}

fn entry_of(uid: u32, passwd: &str) -> Option<Known> {
    entries(passwd).find(|(u, ..)| *u == uid)
}

fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33:www:/var/www:/bin/false\n7:x:70:71::/seven:\n";
    const GROUP: &str = "root:x:0:\nweb:x:33:\nlog:x:4:syslog,web\nadm:x:5:web\n";

    fn user(uid: u32, gid: u32, groups: &[u32], home: &str) -> Result<User, UnknownUser> {
        Ok(User {
            uid,
            gid,
            groups: groups.to_vec(),
            home: home.into(),
        })
    }

    #[test]
    fn all_the_forms_of_the_specification() {
        for (spec, want) in [
            ("", user(0, 0, &[], "/root")),
            ("web", user(33, 33, &[4, 5], "/var/www")),
            ("33", user(33, 33, &[4, 5], "/var/www")),
            ("web:log", user(33, 4, &[], "/var/www")),
            ("web:99", user(33, 99, &[], "/var/www")),
            ("1000", user(1000, 0, &[], "/")),
            ("1000:1000", user(1000, 1000, &[], "/")),
            ("1000:log", user(1000, 4, &[], "/")),
            ("7", user(70, 71, &[], "/seven")),
            ("nobody", Err(UnknownUser::User("nobody".into()))),
            ("web:none", Err(UnknownUser::Group("none".into()))),
            ("-1", Err(UnknownUser::User("-1".into()))),
        ] {
            assert_eq!(find(spec, PASSWD, GROUP), want, "{spec:?}");
        }
    }

    #[test]
    fn an_image_without_the_files_has_root_and_numbers() {
        assert_eq!(find("", "", ""), user(0, 0, &[], "/"));
        assert_eq!(find("12:34", "", ""), user(12, 34, &[], "/"));
    }
}
