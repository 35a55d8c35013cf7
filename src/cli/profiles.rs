//! Keys for S3 where other programs look for them: the environment, then the profile files of the
//! AWS tools.
//!
//! Invariants: no secret is printed; a profile that is asked for and not there is an error, never
//! another one instead.

use super::context::variable;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::s3::Credentials;
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// Largest profile file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a profile can say of keys that this program cannot get.
const OTHER_WAYS: [&str; 4] = ["credential_process", "role_arn", "sso_session", "sso_start_url"];

/// Settings of the cloud for what runs in it, by variable and by the name that object_store gives
/// them.
const GIVEN: [(&str, &str); 6] = [
    ("AWS_WEB_IDENTITY_TOKEN_FILE", "aws_web_identity_token_file"),
    ("AWS_ROLE_ARN", "aws_role_arn"),
    ("AWS_ROLE_SESSION_NAME", "aws_role_session_name"),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "aws_container_credentials_relative_uri"),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "aws_container_credentials_full_uri"),
    ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "aws_container_authorization_token_file"),
];

/// The settings of one profile, out of both files.
#[derive(Default)]
pub struct Profile {
    name: String,
    settings: HashMap<String, String>,
}

/// The text of a variable of the environment, unless it is empty.
///
/// # Errors
/// `Usage` for what is no text.
pub fn text(name: &str) -> Result<Option<String>> {
    let text = variable(name).map(OsString::into_string).transpose();
    text.map_err(|_| Error::new(ErrorKind::Usage, format!("cannot use {name}: it is no text")))
}

/// Whose variables count: the plain ones, or those of the source of a copy, which have a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variables {
    /// `AWS_PROFILE` and so on.
    Plain,
    /// `DISKVAULT_FROM_AWS_PROFILE` and so on.
    Source,
}

impl Variables {
    /// What a variable is called.
    pub fn name(self, name: &str) -> String {
        let prefix = if self == Variables::Source { "DISKVAULT_FROM_" } else { "" };
        format!("{prefix}{name}")
    }

    /// As the function of this name.
    ///
    /// # Errors
    /// As there.
    pub fn text(self, name: &str) -> Result<Option<String>> {
        text(&self.name(name))
    }
}

impl Profile {
    /// Reads the profile of this name; else the one that `AWS_PROFILE` names, or the one called
    /// default, which need not be.
    ///
    /// # Errors
    /// `Usage` if there is no profile of that name; `Failed` for a file that cannot be read.
    pub fn read(chosen: Option<&str>, variables: Variables) -> Result<Profile> {
        let named = match chosen {
            Some(name) => Some(name.to_owned()),
            None => variables.text("AWS_PROFILE")?,
        };
        let name = named.clone().unwrap_or_else(|| "default".into());
        let home = variable("HOME").map(PathBuf::from);
        let file = |variable_name: &str, leaf: &str| {
            let below_home = || home.as_ref().map(|home| home.join(".aws").join(leaf));
            variable(variable_name).map(PathBuf::from).or_else(below_home)
        };
        let mut profile = Profile { name: name.clone(), settings: HashMap::new() };
        let mut is_there = false;
        let files = [
            (file("AWS_CONFIG_FILE", "config"), format!("profile {name}")),
            // What is in the file of keys counts more.
            (file("AWS_SHARED_CREDENTIALS_FILE", "credentials"), name.clone()),
        ];
        for (path, section) in files {
            let Some(content) = path.as_ref().map(read_file).transpose()?.flatten() else {
                continue;
            };
            for wanted in [name.as_str(), section.as_str()] {
                // A section of the config file is called `profile x`, but for the default one.
                if wanted == name && section != name && name != "default" {
                    continue;
                }
                if let Some(settings) = section_of(&content, wanted) {
                    is_there = true;
                    profile.settings.extend(settings);
                }
            }
        }
        if let Some(named) = named.filter(|_| !is_there) {
            let text = format!("cannot find profile \"{}\"", named.escape_debug());
            let name = variables.name("AWS_PROFILE");
            let hint = format!("look at {name}, ~/.aws/credentials and ~/.aws/config");
            return Err(Error::new(ErrorKind::Usage, text).hint(hint));
        }
        Ok(profile)
    }

    /// A setting of it.
    pub fn get(&self, name: &str) -> Option<String> {
        self.settings.get(name).filter(|value| !value.is_empty()).cloned()
    }

    /// Keys of the environment, of the profile, or what the cloud gives to the machine; the last
    /// only where the server is AWS itself.
    ///
    /// # Errors
    /// `Usage` if there are none.
    pub fn credentials(&self, variables: Variables, is_aws: bool) -> Result<Credentials> {
        let names = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
        let [id_name, secret_name] = names.map(|name| variables.name(name));
        match (text(&id_name)?, text(&secret_name)?) {
            (Some(id), Some(secret)) => {
                let token = variables.text("AWS_SESSION_TOKEN")?;
                return Ok(Credentials::Keys { id, secret, token });
            }
            (Some(_), None) => return Err(half(&id_name, &secret_name)),
            (None, Some(_)) => return Err(half(&secret_name, &id_name)),
            (None, None) => {}
        }
        match (self.get("aws_access_key_id"), self.get("aws_secret_access_key")) {
            (Some(id), Some(secret)) => {
                let token = self.get("aws_session_token");
                return Ok(Credentials::Keys { id, secret, token });
            }
            (None, None) => {}
            _ => return Err(half("aws_access_key_id", "aws_secret_access_key")),
        }
        if let Some(way) = OTHER_WAYS.iter().find(|way| self.get(way).is_some()) {
            let name = self.name.escape_debug();
            let text = format!("cannot use profile \"{name}\": {way} is not supported");
            let hint = "export the keys with `aws configure export-credentials --format env`";
            return Err(Error::new(ErrorKind::Usage, text).hint(hint));
        }
        let mut given = Vec::new();
        for (variable, name) in GIVEN.into_iter().filter(|_| variables == Variables::Plain) {
            given.extend(text(variable)?.map(|value| (name.to_owned(), value)));
        }
        // What the cloud gives is given to this machine, not to the source of a copy alone.
        let may_be_given = is_aws && variables == Variables::Plain;
        let is_off = text("AWS_EC2_METADATA_DISABLED")?.is_some_and(|text| text == "true");
        if !given.is_empty() || (may_be_given && !is_off) {
            return Ok(Credentials::Given(given));
        }
        let error = Error::new(ErrorKind::Usage, "cannot find keys for S3");
        let profile = variables.name("AWS_PROFILE");
        Err(error.hint(format!("set {id_name} and {secret_name}, or {profile}")))
    }
}

fn half(there: &str, missing: &str) -> Error {
    let text = format!("cannot use {there} without {missing}");
    Error::new(ErrorKind::Usage, text)
}

/// The text of a file, `None` if there is none.
fn read_file(path: &PathBuf) -> Result<Option<String>> {
    let cannot = |cause: std::io::Error| {
        let text = format!("cannot read {}", path.display());
        Error::io(ErrorKind::Failed, text, cause)
    };
    match std::fs::metadata(path) {
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(cannot(cause)),
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => {
            return Err(cannot(std::io::Error::other("it is too large for a file of profiles")));
        }
        Ok(_) => {}
    }
    std::fs::read_to_string(path).map(Some).map_err(cannot)
}

/// The settings of a section, if it is there. Lines that are set in belong to the setting above
/// them and are left out.
fn section_of(content: &str, wanted: &str) -> Option<HashMap<String, String>> {
    let mut found: Option<HashMap<String, String>> = None;
    let mut is_in = false;
    for line in content.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) || line.starts_with([' ', '\t']) {
            continue;
        }
        if let Some(title) = trimmed.strip_prefix('[') {
            let title = title.split(']').next().unwrap_or_default();
            let words: Vec<&str> = title.split_whitespace().collect();
            is_in = words.join(" ").replace('"', "") == wanted;
            if is_in {
                found.get_or_insert_default();
            }
        } else if let (true, Some((name, value))) = (is_in, trimmed.split_once('=')) {
            let settings = found.get_or_insert_default();
            settings.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_told_apart() {
        let content = "# keys\n[default]\naws_access_key_id = A\n  aws_secret_access_key = no\n\
            [profile \"work\"]\nREGION=eu-1 \ns3 =\n  addressing_style = path\n; end\n[other]\nregion=x";
        let settings = section_of(content, "default").unwrap();
        assert_eq!(settings.get("aws_access_key_id").map(String::as_str), Some("A"));
        assert_eq!(settings.len(), 1);
        let settings = section_of(content, "profile work").unwrap();
        assert_eq!(settings.get("region").map(String::as_str), Some("eu-1"));
        assert!(section_of(content, "none").is_none());
    }
}
