//! What `check` wants to know of configs, key slots and the instance.
//!
//! Invariant: every object in `config/` and every slot the config lists is looked at, also those
//! that opening the repository did not need.

use super::{Repository, read_configs, secrets};
use crate::error::Result;
use crate::storage::Folder;
use diskvault_format::names;

/// Something wrong with configs or keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// True for damage, false for a mere warning.
    pub is_damage: bool,
    /// What is wrong.
    pub text: String,
}

impl Repository {
    /// Looks at every config, every listed key slot and the instance.
    ///
    /// # Errors
    /// Fails only if the storage cannot be listed.
    pub fn describe_problems(&self) -> Result<Vec<ConfigProblem>> {
        let mut problems = Vec::new();
        let mut damage = |text: String| problems.push(ConfigProblem { is_damage: true, text });
        for text in &self.warnings {
            damage(text.clone());
        }
        let (configs, unreadable) = read_configs(self.storage.as_ref())?;
        for text in unreadable {
            if !self.warnings.contains(&text) {
                damage(text);
            }
        }
        // Opening verified only the configs down to the one that counts.
        for candidate in &configs {
            let verified = candidate.config.verify(&self.keys, &candidate.leaf, &candidate.bytes);
            if let Err(cause) = verified {
                let name = format!("config/{}", candidate.leaf);
                let text = super::objects::refused(name, cause).full_text();
                if !self.warnings.iter().any(|known| known.starts_with(&text)) {
                    damage(text);
                }
            }
        }
        for stored in secrets::read_slots(self.storage.as_ref(), &self.config)? {
            let result = stored.slot.and_then(|slot| {
                let name = secrets::slot_name(stored.id)?;
                slot.label(&self.keys).map_err(|cause| super::objects::refused(name, cause))
            });
            if let Err(error) = result {
                damage(error.full_text());
            }
        }
        if let Err(error) = self.instance() {
            damage(error.full_text());
        }
        let same = |candidate: &&super::ConfigCandidate| {
            candidate.config.generation == self.config.generation
        };
        if configs.iter().filter(same).count() > 1 {
            let text = format!(
                "there are two configs of generation {}: the one with the greater name counts",
                self.config.generation
            );
            problems.push(ConfigProblem { is_damage: false, text });
        }
        if self.config.key_slots.len() == 1 {
            let text = "there is only one key slot: `diskvault key add` makes another";
            problems.push(ConfigProblem { is_damage: false, text: text.into() });
        }
        let unnamed = self.storage.list(Folder::Config)?;
        for entry in unnamed {
            if names::parse_config(entry.name.leaf()).is_none() {
                let text = format!("{} does not fit the grammar of names", entry.name);
                problems.push(ConfigProblem { is_damage: false, text });
            }
        }
        Ok(problems)
    }
}
