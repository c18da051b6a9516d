//! What a guest runs: the image's own init, or its entrypoint.

use crate::config::{EnvVar, GuestConfig, InitMode};

/// Where an image's own init is looked for, in this order.
pub const INIT_PATHS: [&str; 6] = [
    "/sbin/init",
    "/usr/sbin/init",
    "/lib/systemd/systemd",
    "/usr/lib/systemd/systemd",
    "/bin/init",
    "/sbin/openrc-init",
];

/// The search path of a process whose environment names none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const SHELLS: [&str; 6] = ["sh", "bash", "ash", "dash", "zsh", "busybox"];

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Execute the image's init as PID 1.
    Image {
        /// Absolute path in the image, then its arguments.
        argv: Vec<String>,
    },
    /// Run and supervise a process.
    Entrypoint {
        /// Command (looked up in PATH when it has no slash), then its arguments.
        argv: Vec<String>,
        /// A bare shell: it gets the console as its terminal, because it would end at once without one.
        interactive: bool,
    },
}

/// Why there is nothing to run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NothingToRun {
    /// Neither.
    #[error("the image has no entrypoint, no cmd and no init: set guest.command")]
    Neither,
    /// `guest.init: Image`, and the image has none.
    #[error("guest.init is Image, but the image has no /sbin/init")]
    NoInit,
    /// `guest.init: Entrypoint`, and there is none.
    #[error("guest.init is Entrypoint, but there is no entrypoint, cmd or command")]
    NoEntrypoint,
}

/// Decides from the configuration and from the init that the image was found to have.
///
/// # Errors
/// There is nothing to run.
pub fn decide(config: &GuestConfig, image_init: Option<&str>) -> Result<Plan, NothingToRun> {
    let argv = command_line(config);
    let named = argv
        .first()
        .is_some_and(|command| INIT_PATHS.contains(&command.as_str()));
    let bare_shell = is_bare_shell(&argv);
    let entrypoint = || match argv.is_empty() {
        true => None,
        false => Some(Plan::Entrypoint {
            argv: argv.clone(),
            interactive: bare_shell,
        }),
    };
    let own = || match (named, image_init) {
        (true, _) => Some(Plan::Image { argv: argv.clone() }),
        (false, Some(path)) => Some(Plan::Image {
            argv: vec![path.to_owned()],
        }),
        (false, None) => None,
    };
    match config.init {
        InitMode::Image => own().ok_or(NothingToRun::NoInit),
        InitMode::Entrypoint => entrypoint().ok_or(NothingToRun::NoEntrypoint),
        InitMode::Auto if named => own().ok_or(NothingToRun::NoInit),
        InitMode::Auto if argv.is_empty() || (bare_shell && config.command.is_none()) => {
            own().or_else(entrypoint).ok_or(NothingToRun::Neither)
        }
        InitMode::Auto => entrypoint().ok_or(NothingToRun::Neither),
    }
}

/// Entrypoint and cmd under `command` and `args`, as in a Pod: `command` replaces the entrypoint
/// and drops the image's cmd, `args` replaces the cmd. `$(NAME)` is expanded in both.
fn command_line(config: &GuestConfig) -> Vec<String> {
    let environment = expanded(&config.env);
    let expand_all = |words: &[String]| words.iter().map(|word| expand(word, &environment)).collect::<Vec<_>>();
    let mut argv = match &config.command {
        Some(command) => expand_all(command),
        None => config.image.entrypoint.clone(),
    };
    match (&config.args, &config.command) {
        (Some(args), _) => argv.extend(expand_all(args)),
        (None, Some(_)) => {}
        (None, None) => argv.extend(config.image.cmd.iter().cloned()),
    }
    argv
}

fn is_bare_shell(argv: &[String]) -> bool {
    let Some((command, arguments)) = argv.split_first() else {
        return false;
    };
    let name = command.rsplit('/').next().unwrap_or_default();
    match name {
        "busybox" => matches!(arguments, [applet] if SHELLS.contains(&applet.as_str())),
        _ => SHELLS.contains(&name) && arguments.iter().all(|a| a == "-l" || a == "-i" || a == "--login"),
    }
}

/// The environment of the workload: the image's, then the configuration's, later ones winning.
/// PATH, HOME and HOSTNAME are there in any case.
pub fn environment(config: &GuestConfig, home: &str) -> Vec<(String, String)> {
    let mut all = vec![
        ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
        ("HOME".to_owned(), home.to_owned()),
        ("HOSTNAME".to_owned(), config.hostname.clone()),
    ];
    let image = config
        .image
        .env
        .iter()
        .filter_map(|entry| entry.split_once('='))
        .map(|(n, v)| (n.to_owned(), v.to_owned()));
    let mut set = |name: String, value: String| match all.iter_mut().find(|(n, _)| *n == name) {
        Some(entry) => entry.1 = value,
        None => all.push((name, value)),
    };
    let usable = |name: &str, value: &str| !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
    for (name, value) in image.chain(expanded(&config.env)) {
        if usable(&name, &value) {
            set(name, value);
        }
    }
    all
}

fn expanded(variables: &[EnvVar]) -> Vec<(String, String)> {
    let mut done: Vec<(String, String)> = Vec::with_capacity(variables.len());
    for variable in variables {
        let value = expand(&variable.value, &done);
        done.push((variable.name.clone(), value));
    }
    done
}

/// `$(NAME)` becomes the variable's value, `$$` a dollar; what is unknown stays as written
/// (k8s.io/kubernetes/third_party/forked/golang/expansion).
fn expand(text: &str, variables: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match variables.iter().rev().find(|(n, _)| n == name) {
                Some((_, value)) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// The number of a stop signal given as `SIGTERM`, `TERM`, `15` or `SIGRTMIN+3`. None: not a signal.
pub fn stop_signal(text: &str) -> Option<i32> {
    if text.is_empty() {
        return Some(libc::SIGTERM);
    }
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.strip_prefix("SIG").unwrap_or(text);
    if let Some(offset) = name.strip_prefix("RTMIN+") {
        return offset
            .parse::<i32>()
            .ok()
            .filter(|n| (0..=30).contains(n))
            .map(|n| 34 + n);
    }
    let names = [
        ("HUP", libc::SIGHUP),
        ("INT", libc::SIGINT),
        ("QUIT", libc::SIGQUIT),
        ("ABRT", libc::SIGABRT),
        ("KILL", libc::SIGKILL),
        ("USR1", libc::SIGUSR1),
        ("USR2", libc::SIGUSR2),
        ("ALRM", libc::SIGALRM),
        ("TERM", libc::SIGTERM),
        ("WINCH", libc::SIGWINCH),
        ("PWR", libc::SIGPWR),
        ("CONT", libc::SIGCONT),
    ];
    names.iter().find(|(n, _)| *n == name).map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ImageProcess;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|w| (*w).to_owned()).collect()
    }

    fn image(entrypoint: &[&str], cmd: &[&str]) -> GuestConfig {
        let image = ImageProcess {
            entrypoint: words(entrypoint),
            cmd: words(cmd),
            ..ImageProcess::default()
        };
        GuestConfig {
            image,
            ..GuestConfig::default()
        }
    }

    fn runs(argv: &[&str]) -> Result<Plan, NothingToRun> {
        Ok(Plan::Entrypoint {
            argv: words(argv),
            interactive: false,
        })
    }

    fn boots(argv: &[&str]) -> Result<Plan, NothingToRun> {
        Ok(Plan::Image { argv: words(argv) })
    }

    const INIT: Option<&str> = Some("/sbin/init");

    #[test]
    fn redis_on_alpine_runs_its_entrypoint_although_there_is_an_init() {
        let redis = image(&["docker-entrypoint.sh"], &["redis-server"]);
        assert_eq!(decide(&redis, INIT), runs(&["docker-entrypoint.sh", "redis-server"]));
    }

    #[test]
    fn an_image_whose_command_names_an_init_boots_it_with_its_arguments() {
        assert_eq!(
            decide(&image(&[], &["/sbin/init", "--log"]), INIT),
            boots(&["/sbin/init", "--log"])
        );
        assert_eq!(
            decide(&image(&["/lib/systemd/systemd"], &[]), INIT),
            boots(&["/lib/systemd/systemd"])
        );
    }

    #[test]
    fn an_image_with_nothing_or_a_bare_shell_boots_its_init() {
        assert_eq!(decide(&image(&[], &[]), INIT), boots(&["/sbin/init"]));
        assert_eq!(decide(&image(&[], &["/bin/sh"]), INIT), boots(&["/sbin/init"]));
        assert_eq!(decide(&image(&[], &["bash", "-l"]), INIT), boots(&["/sbin/init"]));
    }

    #[test]
    fn a_bare_shell_without_an_init_gets_the_console() {
        let plan = Plan::Entrypoint {
            argv: words(&["bash"]),
            interactive: true,
        };
        assert_eq!(decide(&image(&[], &["bash"]), None), Ok(plan));
        assert_eq!(
            decide(&image(&["/bin/sh", "-c"], &["exit 3"]), INIT),
            runs(&["/bin/sh", "-c", "exit 3"])
        );
    }

    #[test]
    fn nothing_at_all_is_said() {
        assert_eq!(decide(&image(&[], &[]), None), Err(NothingToRun::Neither));
        let forced = |init| GuestConfig {
            init,
            ..image(&[], &[])
        };
        assert_eq!(decide(&forced(InitMode::Image), None), Err(NothingToRun::NoInit));
        assert_eq!(
            decide(&forced(InitMode::Entrypoint), INIT),
            Err(NothingToRun::NoEntrypoint)
        );
    }

    #[test]
    fn the_users_choice_wins() {
        let redis = image(&["docker-entrypoint.sh"], &[]);
        assert_eq!(
            decide(
                &GuestConfig {
                    init: InitMode::Image,
                    ..redis
                },
                INIT
            ),
            boots(&["/sbin/init"])
        );
        let debian = GuestConfig {
            init: InitMode::Entrypoint,
            ..image(&["sleep"], &["1"])
        };
        assert_eq!(decide(&debian, INIT), runs(&["sleep", "1"]));
        let named = GuestConfig {
            command: Some(words(&["sh"])),
            ..image(&[], &[])
        };
        assert!(matches!(decide(&named, INIT), Ok(Plan::Entrypoint { .. })));
    }

    #[test]
    fn command_and_args_replace_as_in_a_pod() {
        let base = image(&["e"], &["c"]);
        let with = |command: Option<&[&str]>, args: Option<&[&str]>| GuestConfig {
            command: command.map(words),
            args: args.map(words),
            ..base.clone()
        };
        assert_eq!(decide(&with(Some(&["x"]), None), None), runs(&["x"]));
        assert_eq!(decide(&with(None, Some(&["y"])), None), runs(&["e", "y"]));
        assert_eq!(decide(&with(Some(&["x"]), Some(&["y"])), None), runs(&["x", "y"]));
    }

    #[test]
    fn references_to_variables_are_expanded_as_in_a_pod() {
        let variables = [("A".to_owned(), "1".to_owned())];
        for (text, want) in [
            ("$(A)", "1"),
            ("x$(A)y$(B)", "x1y$(B)"),
            ("$$(A)", "$(A)"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("ä$(A)", "ä1"),
        ] {
            assert_eq!(expand(text, &variables), want, "{text}");
        }
        let env = |name: &str, value: &str| EnvVar {
            name: name.into(),
            value: value.into(),
        };
        let config = GuestConfig {
            env: vec![env("A", "1"), env("B", "$(A)2"), env("PATH", "/p")],
            args: Some(words(&["$(B)"])),
            ..image(&["e"], &[])
        };
        assert_eq!(decide(&config, None), runs(&["e", "12"]));
        let all = environment(&config, "/root");
        assert!(
            all.contains(&("B".into(), "12".into())) && all.contains(&("PATH".into(), "/p".into())),
            "{all:?}"
        );
    }

    #[test]
    fn the_images_environment_comes_first_and_defaults_stand_behind_it() {
        let mut config = image(&[], &[]);
        config.image.env = words(&["A=image=1", "HOME=/srv", "broken", "=x"]);
        config.env = vec![EnvVar {
            name: "A".into(),
            value: "mine".into(),
        }];
        let all = environment(&config, "/root");
        assert!(all.contains(&("A".into(), "mine".into())) && all.contains(&("HOME".into(), "/srv".into())));
        assert!(all.contains(&("PATH".into(), DEFAULT_PATH.into())));
        assert_eq!(all.len(), 4, "{all:?}");
    }

    #[test]
    fn stop_signals_are_names_or_numbers() {
        assert_eq!(stop_signal(""), Some(15));
        assert_eq!(stop_signal("SIGQUIT"), Some(3));
        assert_eq!(stop_signal("INT"), Some(2));
        assert_eq!(stop_signal("9"), Some(9));
        assert_eq!(stop_signal("SIGRTMIN+3"), Some(37));
        assert_eq!(
            [stop_signal("0"), stop_signal("99"), stop_signal("SIGDANCE")],
            [None; 3]
        );
    }
}
