//! Credentials as Amazon's own tools find them. The chain reads the environment, so it runs in a process of its own.
#![cfg(feature = "aws-chain")]

use std::process::Command;

use sandpail_store::http::{AwsChain, CredentialProvider};

const CHILD: &str = "SANDPAIL_TEST_PROFILE";

/// The child: prints what it found.
#[tokio::test]
#[ignore = "started by the other tests"]
async fn child() {
    let Ok(profile) = std::env::var(CHILD) else { return };
    let chain = AwsChain::new(Some(profile).filter(|profile| !profile.is_empty()));
    match chain.get().await {
        Ok(found) => {
            assert_eq!(chain.get().await.unwrap().access_key_id, found.access_key_id);
            let token = found.session_token.as_ref().map_or("none", |token| token.expose());
            println!("FOUND {} {} {token}", found.access_key_id, found.secret_access_key.expose());
        }
        Err(error) => println!("FAILED {error}"),
    }
}

fn run(profile: &str, config: &str, variables: &[(&str, &str)]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config");
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--ignored", "--nocapture"]);
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"] {
        command.env_remove(name);
    }
    command.env(CHILD, profile).env("AWS_CONFIG_FILE", &file).env("AWS_EC2_METADATA_DISABLED", "true");
    command.env("AWS_SHARED_CREDENTIALS_FILE", directory.path().join("none")).envs(variables.iter().copied());
    let output = command.output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn profiles_processes_and_variables() {
    let config = "[default]\naws_access_key_id = D\naws_secret_access_key = d\n\
        [profile work]\ncredential_process = echo '{\"Version\":1,\"AccessKeyId\":\"P\",\"SecretAccessKey\":\"p\",\"SessionToken\":\"t\"}'\n";
    assert!(run("", config, &[]).contains("FOUND D d none"));
    assert!(run("work", config, &[]).contains("FOUND P p t"));
    let variables = [("AWS_ACCESS_KEY_ID", "E"), ("AWS_SECRET_ACCESS_KEY", "e")];
    assert!(run("", config, &variables).contains("FOUND E e none"));
    let text = run("absent", config, &[]);
    assert!(text.contains("FAILED credentials refused: no AWS credentials found with profile \"absent\""), "{text}");
}

#[test]
fn a_profile_that_was_asked_for_comes_before_variables() {
    let config = "[profile work]\naws_access_key_id = W\naws_secret_access_key = w\nregion = eu-west-1\n";
    let variables = [("AWS_ACCESS_KEY_ID", "E"), ("AWS_SECRET_ACCESS_KEY", "e")];
    assert!(run("work", config, &variables).contains("FOUND W w none"));
}
