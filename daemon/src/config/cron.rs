//! `[cron.<id>]`: the jobs of the configuration file.

use toml::{Table, Value};

use super::field;
use super::settings::Layers;
use crate::error::FieldError;
use crate::schedule::{Job, check_id};

/// Reads every job; what is wrong with one names its setting.
pub(super) fn jobs(file: &Table, layers: &mut Layers) -> Vec<(String, Job)> {
    let mut found = Vec::new();
    match file.get("cron") {
        None => {}
        Some(Value::Table(jobs)) => {
            for (id, definition) in jobs {
                match job(id, definition) {
                    Ok(job) => found.push((id.clone(), job)),
                    Err(wrong) => wrong.into_iter().for_each(|one| layers.wrong(&one.field, &one.reason)),
                }
            }
        }
        Some(_) => layers.wrong("cron", "must hold jobs, such as [cron.digest]."),
    }
    found
}

fn job(id: &str, definition: &Value) -> Result<Job, Vec<FieldError>> {
    let key = format!("cron.{id}");
    check_id(id).map_err(|reason| vec![field(&key, reason)])?;
    let definition = serde_json::to_value(definition).ok();
    let Some(serde_json::Value::Object(fields)) = definition else {
        return Err(vec![field(&key, "must be a table, such as [cron.digest].".to_owned())]);
    };
    let named = |one: FieldError| FieldError { field: format!("{key}.{}", one.field), ..one };
    Job::read(fields).map_err(|wrong| wrong.into_iter().map(named).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Job, String> {
        let file: Table = text.parse().expect("TOML");
        let (id, definition) = file["cron"].as_table().and_then(|jobs| jobs.iter().next()).expect("a job");
        job(id, definition).map_err(|wrong| wrong.into_iter().map(|one| one.field).collect::<Vec<_>>().join(","))
    }

    #[test]
    fn jobs_are_read_and_what_is_wrong_is_named() {
        let good = "[cron.digest]\nexpression = \"0 8 * * 1-5\"\ntimezone = \"Europe/Berlin\"\nskill = \"daily\"\n\
                    misfire = { within = \"10m\" }\npayload = { n = 1 }";
        let job = check(good).expect("good");
        assert_eq!((job.timezone.as_str(), job.skill.as_deref()), ("Europe/Berlin", Some("daily")));
        for (text, wrong) in [
            ("[cron.digest]", "cron.digest.expression"),
            ("[cron.digest]\nexpression = \"x\"\nzone = 1", "cron.digest.expression,cron.digest.zone"),
            ("[cron.add]\nexpression = \"@daily\"", "cron.add"),
            ("[cron.A]\nexpression = \"@daily\"", "cron.A"),
            ("[cron]\ndigest = \"@daily\"", "cron.digest"),
        ] {
            assert_eq!(check(text).err().as_deref(), Some(wrong), "{text}");
        }
    }
}
