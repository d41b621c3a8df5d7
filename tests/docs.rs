//! The documentation against the program: what is written there exists, and what exists is there.
//! Its commands are run by `walkthrough.rs`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/pages.rs"]
mod pages;
#[path = "support/strings.rs"]
mod strings;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;

use cinder_docker_driver::cli::Cli;
use cinder_docker_driver::config;
use cinder_docker_driver::driver::options;
use clap::CommandFactory;
use pages::Page;

/// The README is read on a screen, the rest is in `docs/`.
const LONGEST_README: usize = 160;

#[test]
fn the_page_of_options_has_the_table_of_the_program() {
    let mut table = "| option | also | what | example |\n| --- | --- | --- | --- |\n".to_owned();
    for row in options::TABLE {
        let aliases: Vec<_> = row.aliases.iter().map(|alias| format!("`{alias}`")).collect();
        let (name, help, example) = (row.name, cell(row.help), cell(row.example));
        let aliases = aliases.join(", ");
        writeln!(table, "| `{name}` | {aliases} | {help} | `-o '{name}={example}'` |").unwrap();
    }
    Page::read("docs/options.md").assert_generated("options", &table);
}

#[test]
fn the_page_of_commands_has_what_the_program_understands() {
    let mut text = String::new();
    let mut cli = Cli::command();
    cli.build();
    for command in cli.get_subcommands().filter(|command| command.get_name() != "help") {
        let name = command.get_name();
        let line = command.clone().render_usage().to_string().replace("Usage: ", "");
        let about = command.get_long_about().or(command.get_about()).unwrap();
        write!(text, "### `{name}`\n\n{}.\n\n`{}`\n\n", one_line(&about.to_string()), line.trim())
            .unwrap();
        let global: BTreeSet<_> = ["help", "version", "config", "socket", "debug"].into();
        let own = command.get_arguments().filter(|arg| !global.contains(arg.get_id().as_str()));
        let mut any = false;
        for arg in own {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            let name = match arg.get_long() {
                Some(long) => format!("--{long}"),
                None => arg.get_id().as_str().to_uppercase(),
            };
            writeln!(text, "- `{name}`: {}", cell(&help)).unwrap();
            any = true;
        }
        if any {
            text.push('\n');
        }
    }
    Page::read("docs/commands.md").assert_generated("commands", &text);
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// A paragraph of the help, as Markdown wants it.
fn one_line(text: &str) -> String {
    let paragraphs: Vec<String> = text
        .split("\n\n")
        .map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let text = paragraphs.join(".\n\n").replace("..\n", ".\n");
    text.trim_end_matches('.').to_owned()
}

#[test]
fn the_page_of_the_configuration_has_every_key_and_no_other() {
    let page = Page::read("docs/configuration.md");
    let mut written = BTreeSet::new();
    for row in page.text.lines().filter(|line| line.starts_with("| `")) {
        let first = row.split('|').nth(1).unwrap();
        for key in first.split(',') {
            let key = key.trim().trim_matches('`').to_owned();
            assert!(written.insert(key.clone()), "{key} is there twice");
        }
    }
    let known: BTreeSet<String> = config::keys().map(str::to_owned).collect();
    let missing: Vec<_> = known.difference(&written).collect();
    let unknown: Vec<_> = written.difference(&known).collect();
    assert!(missing.is_empty(), "{} lacks the keys {missing:?}", page.name);
    assert!(unknown.is_empty(), "{} has keys that there are not: {unknown:?}", page.name);
}

/// In troubleshooting, `…` stands for what differs; the rest of a message is as the program says it.
#[test]
fn every_message_that_is_explained_is_one_of_the_program() {
    let page = Page::read("docs/troubleshooting.md");
    let said = strings::of_the_program();
    let mut count = 0;
    let mut unknown = Vec::new();
    for line in page.text.lines().filter(|line| line.starts_with("**`")) {
        let message = line.trim_start_matches("**`").split("`**").next().unwrap();
        if !said.iter().any(|literal| literal.contains(message)) {
            unknown.push(message);
        }
        assert!(message.chars().filter(|c| c.is_alphabetic()).count() > 12, "too vague: {message}");
        count += 1;
    }
    assert!(unknown.is_empty(), "the program nowhere says: {unknown:#?}");
    assert!(count > 30, "only {count} messages are explained");
}

/// What refuses to format or to mount for the data's sake, is explained: people meet it in a bad
/// hour.
#[test]
fn every_refusal_of_the_plan_is_explained() {
    let page = Page::read("docs/troubleshooting.md");
    let explained: Vec<&str> = page
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("**`")?.split("`**").next())
        .collect();
    let source = fs::read_to_string(pages::path("src/driver/plan.rs")).unwrap();
    let (source, _) = source.split_once("#[cfg(test)]").unwrap();
    let mut refusals = 0;
    for literal in strings::of(source).iter().filter(|literal| literal.len() > 60) {
        refusals += 1;
        assert!(
            explained.iter().any(|message| literal.contains(message)),
            "unexplained: {literal}"
        );
    }
    assert!(refusals >= 8, "{refusals}");
}

#[test]
fn links_lead_somewhere() {
    for page in pages::all() {
        let base = pages::path(&page.name).parent().unwrap().to_owned();
        for link in page.text.split("](").skip(1) {
            let target = link.split(')').next().unwrap();
            if target.contains("://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { pages::path(&page.name) } else { base.join(file) };
            assert!(path.exists(), "{}: {target}", page.name);
            if !anchor.is_empty() {
                let text = fs::read_to_string(&path).unwrap();
                assert!(anchors(&text).contains(anchor), "{}: no heading {target}", page.name);
            }
        }
    }
}

/// The names by which headings are linked to.
fn anchors(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

#[test]
fn every_page_is_linked_from_the_index_and_the_readme_fits_a_few_screens() {
    let (index, readme) = (Page::read("docs/README.md"), Page::read("README.md"));
    for page in pages::all() {
        let Some(name) = page.name.strip_prefix("docs/") else { continue };
        assert!(name == "README.md" || index.text.contains(&format!("]({name})")), "{name}");
    }
    let lines = readme.text.lines().count();
    assert!(lines <= LONGEST_README, "the README has {lines} lines");
}

/// A command that is not run by `walkthrough.rs` names the test that runs it.
#[test]
fn commands_that_are_run_elsewhere_are_there() {
    let mut elsewhere = 0;
    for page in pages::all() {
        for block in page.blocks().iter().filter(|block| block.language == "sh") {
            let Some(file) = block.comment.as_deref().and_then(|c| c.strip_prefix("run by "))
            else {
                continue;
            };
            elsewhere += 1;
            let test = fs::read_to_string(pages::path(file))
                .unwrap_or_else(|e| panic!("{}, line {}: {file}: {e}", page.name, block.line));
            for command in commands(&block.text) {
                let words: Vec<_> =
                    command.split_whitespace().filter(|word| *word != "sudo").take(2).collect();
                let (program, verb) = (words[0], words.get(1).copied().unwrap_or(""));
                let program = program.rsplit('/').next().unwrap();
                // A file is called otherwise there.
                let verb = if verb.contains('/') { "" } else { verb.trim_matches('"') };
                assert!(
                    test.contains(program) && test.contains(verb),
                    "{}, line {}: {file} has nothing like: {command}",
                    page.name,
                    block.line
                );
            }
        }
    }
    assert!(elsewhere > 0);
}

/// The lines of a script, without comments, each with its continuation.
fn commands(script: &str) -> Vec<String> {
    script
        .replace("\\\n", " ")
        .lines()
        .map(|line| line.split(" #").next().unwrap().trim().to_owned())
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect()
}

#[test]
fn examples_of_json_are_json_and_of_the_configuration_name_known_keys() {
    let known: BTreeSet<String> = config::keys().map(str::to_owned).collect();
    let mut configs = 0;
    for page in pages::all() {
        for block in page.blocks().iter().filter(|block| block.language == "json") {
            let json: serde_json::Value = serde_json::from_str(&block.text)
                .unwrap_or_else(|e| panic!("{}, line {}: {e}", page.name, block.line));
            if block.comment.as_deref() != Some("configuration") {
                continue;
            }
            configs += 1;
            for key in json.as_object().unwrap().keys() {
                assert!(known.contains(key), "{}, line {}: {key}", page.name, block.line);
            }
        }
    }
    assert!(configs > 0);
}

/// What can be set on the managed plugin is what its first process makes a configuration of.
#[test]
fn the_settings_of_the_managed_plugin_are_keys() {
    let config = fs::read_to_string(pages::path("plugin/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let mut declared: BTreeSet<_> =
        config["env"].as_array().unwrap().iter().map(|env| env["name"].as_str().unwrap()).collect();
    assert!(declared.remove("DEBUG"));
    let entry = fs::read_to_string(pages::path("plugin/entry")).unwrap();
    let settings = entry.split("SETTINGS=\"").nth(1).unwrap().split('"').next().unwrap();
    let known: BTreeSet<&str> = config::keys().collect();
    let mut used = BTreeSet::new();
    for setting in settings.split_whitespace() {
        let (name, key) = setting.split_once(':').unwrap_or((setting, setting));
        assert!(known.contains(key), "{key}");
        used.insert(name);
    }
    assert_eq!(declared, used);
    let page = Page::read("docs/managed-plugin.md");
    for name in used.iter().filter(|name| !name.starts_with("OS_")) {
        assert!(page.text.contains(&format!("`{name}`")), "{} lacks {name}", page.name);
    }
}
