use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::router::pair_with;
use super::*;
use crate::cli::{
    ClientOptions, ClientsOptions, InitOptions, PairOptions, RevokeOptions, RotateOptions,
    RotateServerOptions,
};
use crate::config::keys::{PublicKey, Token};
use crate::config::pairing::PairingUri;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// A server that `init` has set up.
fn fresh_server() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let config = folder.path().join("etc/server.toml");
    init(&init_options(&config)).unwrap();
    (folder, config)
}

/// The same, with no invitation left.
fn server() -> (TempDir, PathBuf) {
    let (folder, config) = fresh_server();
    revoked(&config, "router").unwrap();
    (folder, config)
}

fn init_options(config: &Path) -> InitOptions {
    InitOptions {
        config: config.to_owned(),
        listen: Vec::new(),
        public: Some("vps.example.net:443".parse().unwrap()),
    }
}

fn named(config: &Path, name: &str) -> ClientOptions {
    ClientOptions { config: config.to_owned(), name: name.into() }
}

fn listed(config: &Path) -> String {
    let run_dir = config.with_file_name("run");
    clients(&ClientsOptions { config: config.to_owned(), run_dir, json: false }).unwrap()
}

fn revoked(config: &Path, name: &str) -> Result<String, ProvisionError> {
    let run_dir = config.with_file_name("run");
    revoke(&RevokeOptions { client: named(config, name), run_dir })
}

fn invited(config: &Path, name: &str) -> PairingUri {
    let report = invite(&named(config, name)).unwrap();
    PairingUri::parse(report.split('\'').nth(1).unwrap()).unwrap()
}

#[test]
fn init_writes_a_configuration_and_a_key_and_invites_a_router() {
    let (_folder, path) = fresh_server();
    let config = read_server_config(&path).unwrap();
    assert_eq!(config.listen.len(), 2);
    assert_eq!(config.limits, Default::default());
    read_server_key(&path, &config).unwrap();
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(&path.with_file_name("server.key")), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    let left = fs::read_dir(path.parent().unwrap()).unwrap().map(|file| file.unwrap().file_name());
    let mut left: Vec<_> = left.collect();
    left.sort();
    assert_eq!(left, [INVITES, "server.key", "server.toml"], "no temporary file is left");
    assert!(listed(&path).contains("router  invited, 2"), "{}", listed(&path));
}

#[test]
fn init_overwrites_nothing() {
    let (_folder, path) = server();
    fs::write(&path, "# mine").unwrap();
    let key = fs::read(path.with_file_name("server.key")).unwrap();
    let error = init(&init_options(&path)).unwrap_err();
    assert_eq!(error.exit_code(), 65);
    assert_eq!(fs::read_to_string(&path).unwrap(), "# mine");
    fs::remove_file(&path).unwrap();
    assert!(init(&init_options(&path)).unwrap().contains("Kept"));
    assert_eq!(fs::read(path.with_file_name("server.key")).unwrap(), key);
}

#[test]
fn an_invitation_enrols_once() {
    let (_folder, path) = server();
    let config = read_server_config(&path).unwrap();
    let uri = invited(&path, "home");
    assert_eq!(uri.server, config.public);
    assert_eq!(uri.key, read_server_key(&path, &config).unwrap().public());
    let stored = fs::read_to_string(path.with_file_name(INVITES)).unwrap();
    assert!(!stored.contains(uri.token.to_url_text().as_str()));
    assert_eq!(mode(&path.with_file_name(INVITES)), 0o600);
    assert!(listed(&path).contains("home  invited, 2"), "{}", listed(&path));

    let now = SystemTime::now();
    let (ours, theirs) = (PublicKey([1; 32]), PublicKey([2; 32]));
    let wrong = Token::from_bytes([0; 32]);
    assert!(matches!(enrol(&path, &wrong, &ours, now), Err(EnrolError::Token)));
    let late = now + Duration::from_secs(25 * 60 * 60);
    assert!(matches!(enrol(&path, &uri.token, &ours, late), Err(EnrolError::Token)));

    let before = fs::read_to_string(&path).unwrap();
    assert_eq!(enrol(&path, &uri.token, &ours, now).unwrap(), "home");
    let after = fs::read_to_string(&path).unwrap();
    assert!(after.starts_with(&before), "what was there stays as it is");
    assert_eq!(mode(&path), 0o600);
    assert_eq!(read_server_config(&path).unwrap().clients[0].public_key, ours);

    assert!(matches!(enrol(&path, &uri.token, &theirs, now), Err(EnrolError::Token)));
    assert_eq!(enrol(&path, &uri.token, &ours, now).unwrap(), "home", "asked again");
    assert!(listed(&path).contains(&format!("home  {}  no server  0", ours.fingerprint())));
}

#[test]
fn names_are_used_once() {
    let (_folder, path) = server();
    let first = invited(&path, "home");
    let second = invited(&path, "home");
    let now = SystemTime::now();
    let (a, b) = (PublicKey([1; 32]), PublicKey([2; 32]));
    assert!(matches!(enrol(&path, &first.token, &a, now), Err(EnrolError::Token)));
    enrol(&path, &second.token, &a, now).unwrap();
    assert_eq!(invite(&named(&path, "home")).unwrap_err().exit_code(), 65);

    let third = invited(&path, "office");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"home\"", "\"office\"")).unwrap();
    assert!(matches!(enrol(&path, &third.token, &b, now), Err(EnrolError::Name(_))));
}

#[test]
fn revoking_takes_away_client_and_invitation() {
    let (_folder, path) = server();
    let before = fs::read_to_string(&path).unwrap();
    let uri = invited(&path, "home");
    revoked(&path, "home").unwrap();
    let key = PublicKey([1; 32]);
    let now = SystemTime::now();
    assert!(matches!(enrol(&path, &uri.token, &key, now), Err(EnrolError::Token)));

    let uri = invited(&path, "home");
    enrol(&path, &uri.token, &key, now).unwrap();
    revoked(&path, "home").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), before);
    assert!(listed(&path).starts_with("No clients yet"));
    assert_eq!(revoked(&path, "home").unwrap_err().exit_code(), 65);
}

#[test]
fn only_one_of_many_enrols_with_a_token() {
    let (_folder, path) = server();
    let uri = invited(&path, "home");
    let enrolled: Vec<bool> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=8)
            .map(|byte| {
                let (path, token) = (&path, &uri.token);
                scope.spawn(move || {
                    enrol(path, token, &PublicKey([byte; 32]), SystemTime::now()).is_ok()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(enrolled.iter().filter(|&&enrolled| enrolled).count(), 1);
    assert_eq!(read_server_config(&path).unwrap().clients.len(), 1);
}

#[test]
fn keys_that_others_can_read_are_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("keys/agent.key");
    let (key, new) = files::private_key(&path).unwrap();
    assert!(new);
    assert_eq!(files::private_key(&path).unwrap(), (key, false));
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let error = files::private_key(&path).unwrap_err();
    assert_eq!(error.exit_code(), 78);
    assert!(error.to_string().contains("mode 644"), "{error}");

    fs::write(&path, "secret that is no key").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let error = files::private_key(&path).unwrap_err().to_string();
    assert!(error.contains("damaged") && !error.contains("secret"), "{error}");
}

#[test]
fn a_created_secret_never_replaces_one() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("key");
    files::create_secret(&path, b"first").unwrap();
    assert!(files::create_secret(&path, b"second").is_err());
    assert_eq!(fs::read(&path).unwrap(), b"first");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// Root writes for a server that runs as a user of its own.
#[test]
fn files_belong_to_whom_their_folder_belongs() {
    let (_folder, path) = server();
    let folder = path.parent().unwrap();
    std::os::unix::fs::chown(folder, Some(4711), Some(4712)).unwrap();
    invited(&path, "home");
    files::replace(&path, &fs::read(&path).unwrap(), 0o600).unwrap();
    for name in [INVITES, "server.toml"] {
        let metadata = fs::metadata(folder.join(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (4711, 4712), "{name}");
    }
}

#[test]
fn replacing_keeps_permissions_and_links() {
    let folder = TempDir::new().unwrap();
    let (path, link) = (folder.path().join("file"), folder.path().join("link"));
    fs::write(&path, "old").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    files::replace(&link, b"new", 0o600).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(mode(&path), 0o640);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
}

fn pair_options(folder: &Path) -> PairOptions {
    PairOptions {
        uri: PairingUri {
            server: "[2001:db8::1]:8443".parse().unwrap(),
            key: PublicKey([7; 32]),
            token: Token::from_bytes([8; 32]),
        },
        config: folder.join("mptcpd"),
        key_dir: folder.join("keys"),
        name: "vps".into(),
    }
}

#[test]
fn pairing_writes_the_section_and_keeps_the_rest() {
    let folder = TempDir::new().unwrap();
    let options = pair_options(folder.path());
    let text = "# mine\nconfig uplink 'wan'\n\toption device 'eth1'\n";
    fs::write(&options.config, text).unwrap();
    let mut shown = None;
    let report = pair(&options, |uri, key| {
        assert_eq!(*uri, options.uri);
        shown = Some(key.public());
        Ok(())
    });
    assert!(!report.unwrap().contains("nothing to do"));
    assert_eq!(shown, Some(read_agent_key(&options.key_dir).unwrap().public()));
    assert_eq!(
        fs::read_to_string(&options.config).unwrap(),
        format!(
            "{text}\nconfig server 'vps'\n\toption address '2001:db8::1'\n\toption port '8443'\n\
             \toption public_key '{}'\n",
            options.uri.key
        )
    );
    let config = read_agent_config(&options.config).unwrap();
    assert_eq!((config.servers[0].port, config.servers[0].public_key), (8443, options.uri.key));
    let before = fs::read(&options.config).unwrap();
    pair(&options, |_, _| Ok(())).unwrap();
    assert_eq!(fs::read(&options.config).unwrap(), before, "pairing again changes nothing");
}

#[test]
fn pairing_without_a_file_makes_one_and_says_what_is_missing() {
    let folder = TempDir::new().unwrap();
    let options = pair_options(folder.path());
    assert!(pair(&options, |_, _| Ok(())).unwrap().contains("'config uplink'"));
    assert_eq!(mode(&options.config), 0o644);
}

#[test]
fn a_refused_pairing_writes_no_configuration() {
    let folder = TempDir::new().unwrap();
    let options = pair_options(folder.path());
    let error = pair(&options, |_, _| Err("the token has expired".into())).unwrap_err();
    assert_eq!(error.exit_code(), 69);
    assert_eq!(
        error.to_string(),
        "[2001:db8::1]:8443 did not enrol this router: the token has expired"
    );
    assert!(!options.config.exists());

    fs::write(&options.config, "config nonsense\n").unwrap();
    let error = pair(&options, |_, _| panic!("the token must not be spent")).unwrap_err();
    assert_eq!(error.exit_code(), 78);
}

/// A stand-in for `uci` that notes its words.
#[test]
fn pairing_through_uci() {
    let folder = TempDir::new().unwrap();
    let options = pair_options(folder.path());
    let uci = folder.path().join("uci");
    let log = folder.path().join("log");
    fs::write(&uci, format!("#!/bin/sh\necho \"$@\" >> {}\n", log.display())).unwrap();
    fs::set_permissions(&uci, fs::Permissions::from_mode(0o755)).unwrap();
    pair_with(&options, Some(&uci), |_, _| Ok(())).unwrap();
    assert_eq!(
        fs::read_to_string(&log).unwrap(),
        format!(
            "set mptcpd.vps=server\nset mptcpd.vps.address=2001:db8::1\nset mptcpd.vps.port=8443\n\
             set mptcpd.vps.public_key={}\ncommit mptcpd\n",
            options.uri.key
        )
    );
    assert!(options.config.exists(), "uci needs the file to be there");

    fs::write(&uci, "#!/bin/sh\necho 'uci: Parse error' >&2\nexit 1\n").unwrap();
    let error = pair_with(&options, Some(&uci), |_, _| Ok(())).unwrap_err().to_string();
    assert!(error.contains("Parse error"), "{error}");
}

#[test]
fn a_routers_new_key_waits_until_all_its_servers_have_it() {
    let folder = TempDir::new().unwrap();
    let options = RotateOptions {
        config: folder.path().join("mptcpd"),
        key_dir: folder.path().join("keys"),
        run_dir: folder.path().join("run"),
    };
    let section = |name: &str| {
        let key = PublicKey([9; 32]);
        format!(
            "config server '{name}'\n\toption address '{name}.example'\n\toption public_key '{key}'\n"
        )
    };
    fs::write(&options.config, section("a") + &section("b")).unwrap();
    let (old, _) = files::private_key(&options.key_dir.join(AGENT_KEY)).unwrap();
    let told = std::cell::RefCell::new(Vec::new());
    let error = rotate_key(&options, |server, _, next| {
        told.borrow_mut().push(*next);
        if server.name == "a" { Ok(()) } else { Err("no answer".into()) }
    });
    let error = error.unwrap_err().to_string();
    assert!(error.starts_with("server b: no answer; the old key stays in use"), "{error}");
    assert_eq!(read_agent_key(&options.key_dir).unwrap(), old);

    rotate_key(&options, |_, shown, next| {
        told.borrow_mut().push(*next);
        assert_eq!(*shown, old);
        Ok(())
    })
    .unwrap();
    let new = read_agent_key(&options.key_dir).unwrap().public();
    assert_eq!(*told.borrow(), [new; 4], "the next try is with the same key");
    assert!(new != old.public() && fs::read_dir(&options.key_dir).unwrap().count() == 1);
}

#[test]
fn a_clients_other_key_stands_beside_the_one_in_force_until_it_is_used() {
    let (_folder, path) = server();
    let [old, unused, new] = [1, 2, 3].map(|byte| PublicKey([byte; 32]));
    enrol(&path, &invited(&path, "home").token, &old, SystemTime::now()).unwrap();
    let keys = || {
        let client = read_server_config(&path).unwrap().clients.remove(0);
        (client.public_key, client.next_key)
    };
    renew_client_key(&path, &old, &old).unwrap();
    assert_eq!(keys(), (old, None), "it has that key already");
    renew_client_key(&path, &new, &unused).unwrap();
    assert_eq!(keys(), (old, None), "no client has shown that one");
    renew_client_key(&path, &old, &unused).unwrap();
    renew_client_key(&path, &old, &new).unwrap();
    assert_eq!(keys(), (old, Some(new)));
    confirm_client_key(&path, &unused).unwrap();
    confirm_client_key(&path, &old).unwrap();
    assert_eq!(keys(), (old, Some(new)));
    confirm_client_key(&path, &new).unwrap();
    assert_eq!(keys(), (new, None));
}

#[test]
fn a_servers_old_key_holds_until_it_is_given_up() {
    let (_folder, path) = server();
    let run_dir = path.with_file_name("run");
    let rotate = |finish| {
        let (config, run_dir) = (path.clone(), run_dir.clone());
        rotate_server_key(&RotateServerOptions { config, run_dir, finish })
    };
    let keys = || read_server_keys(&path, &read_server_config(&path).unwrap()).unwrap();
    let first = keys().newest;
    let error = rotate(true).unwrap_err().to_string();
    assert!(error.contains("nothing to finish"), "{error}");
    // A crash after the first of two steps.
    files::create_secret(&path.with_file_name("server.key.old"), first.to_file().as_bytes())
        .unwrap();
    rotate(false).unwrap();
    assert!(keys().old == Some(first.clone()) && keys().newest != first);
    assert_eq!(invited(&path, "home").key, keys().public, "invitations name the new key");
    assert!(rotate(false).unwrap_err().to_string().contains("--finish"));
    rotate(true).unwrap();
    assert_eq!(keys().old, None);
}
