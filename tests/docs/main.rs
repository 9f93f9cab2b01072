//! Checks the documentation against the code: tables generated from the code's catalogues, commands, links and anchors.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use prover_worker::model::FailureClass;
use prover_worker::{config, telemetry};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

/// Returns the project's Markdown files.
fn pages() -> Vec<PathBuf> {
    let folders = [".", "docs", "docs/gpu", "circuits", "kernels"].map(|d| root().join(d));
    let entries = folders.iter().filter_map(|d| fs::read_dir(d).ok()).flatten();
    let mut pages: Vec<_> =
        entries.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "md")).collect();
    pages.sort();
    pages
}

/// Generates docs/reference.md from the code. `UPDATE_DOCS=1` writes it.
#[test]
fn the_reference_is_made_from_the_code() {
    let want = format!(
        "# Reference\n\nMade from the code by `UPDATE_DOCS=1 cargo test --test docs`.\n\n## Environment\n\nAn empty \
         variable counts as unset. An invalid value is an error at start.\n\n{}\n## Metrics\n\n\
         On `/metrics`, in Prometheus' text format.\n\n{}",
        config::markdown_table(),
        telemetry::markdown_table()
    );
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(root().join("docs/reference.md"), &want).unwrap();
    }
    assert!(read("docs/reference.md") == want, "docs/reference.md is stale: UPDATE_DOCS=1 cargo test --test docs");
}

/// docs/api.md names every route of the API, and every class of error that a job may have.
#[test]
fn the_page_on_the_api_names_all_of_it() {
    let (page, code) = (read("docs/api.md"), read("src/http/api.rs"));
    let routes: Vec<&str> =
        code.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap_or_default()).collect();
    assert!(routes.len() > 5, "{routes:?}");
    for route in routes {
        let named = ["pause", "resume"].map(|act| page.contains(&format!("{}`", route.replace("{act}", act))));
        assert!(named.iter().all(|named| *named), "docs/api.md does not name {route}");
    }
    for class in FailureClass::ALL {
        assert!(page.contains(&format!("`{}`", class.as_str())), "docs/api.md does not name {}", class.as_str());
    }
}

#[test]
fn the_readme_names_every_variable_and_metric_as_the_code_does() {
    let readme = read("README.md");
    for name in rows(&readme, "variable") {
        assert!(config::CATALOGUE.iter().any(|v| v.name == name), "README names {name}, which nothing reads");
    }
    for name in rows(&readme, "metric") {
        assert!(telemetry::METRICS.iter().any(|m| m.name == name), "README names {name}, which is no metric");
    }
}

#[test]
fn the_alerts_name_metrics_and_labels_as_the_code_does() {
    let alerts = read("docs/alerts.yaml");
    let exprs: Vec<_> = alerts.lines().filter_map(|l| l.trim().strip_prefix("expr: ")).collect();
    assert_eq!(
        exprs.len(),
        alerts.matches("- alert: ").count(),
        "an expression of more than one line is not looked at"
    );
    exprs.into_iter().for_each(assert_names);
}

#[test]
fn the_dashboard_names_metrics_and_labels_as_the_code_does() {
    let dashboard: serde_json::Value = serde_json::from_str(&read("docs/grafana.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let mut known: Vec<_> = telemetry::METRICS.iter().flat_map(|m| m.labels).copied().collect();
    known.extend(["instance", "queue"]);
    let mut n = 0;
    for target in targets {
        let (expr, legend) = (target["expr"].as_str().unwrap(), target["legendFormat"].as_str().unwrap());
        assert_names(expr);
        // The expression must keep the labels that its legend shows.
        for label in legend.split("{{").skip(1).filter_map(|part| part.split("}}").next()) {
            let kept = expr.split("by (").skip(1).filter_map(|part| part.split(')').next());
            assert!(kept.flat_map(|labels| labels.split(", ")).any(|l| l == label), "{label} is not in {expr}");
            assert!(known.contains(&label), "{label} is no label: {legend}");
        }
        n += 1;
    }
    assert!(n >= 28, "{n} expressions");
}

/// Asserts that every name in a Prometheus expression is a metric's, and every string a label's value or a dashboard
/// variable.
fn assert_names(expr: &str) {
    let values: Vec<_> = FailureClass::ALL.iter().map(|c| c.as_str()).chain(telemetry::MESSAGE_OUTCOMES).collect();
    let is_metric = |name: &str| {
        let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
        telemetry::METRICS.iter().any(|m| m.name == name || Some(m.name) == histogram)
    };
    // Every other part is quoted.
    for (i, part) in expr.split('"').enumerate() {
        if i % 2 == 1 {
            assert!(values.contains(&part) || part == "$queue", "{part} is no value of a label: {expr}");
            continue;
        }
        let names = part.split(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '$'));
        for name in names.filter(|n| n.contains('_') && !["$__rate_interval", "histogram_quantile"].contains(n)) {
            assert!(is_metric(name), "{name} is no metric: {expr}");
        }
    }
}

/// Returns the first cells, without backticks, of the table whose first column is headed `head`.
fn rows(text: &str, head: &str) -> Vec<String> {
    let mut lines = text.lines().skip_while(|l| !l.starts_with(&format!("| {head} |")));
    assert!(lines.next().is_some(), "no table of {head}s");
    let rows = lines.skip(1).take_while(|l| l.starts_with('|'));
    let names: Vec<_> = rows.map(|l| l.split('|').nth(1).unwrap().trim().trim_matches('`').to_owned()).collect();
    assert!(!names.is_empty(), "an empty table of {head}s");
    names
}

/// Returns the lines of a Markdown page, each with whether it is in a fenced block; the fences themselves are left out.
fn lines(text: &str) -> impl Iterator<Item = (bool, &str)> {
    let mut fenced = false;
    text.lines().filter_map(move |line| {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            return None;
        }
        Some((fenced, line))
    })
}

/// Returns the commands of `prover-worker` in a page's fenced blocks and code spans, each as the words after the
/// program's name.
fn commands(text: &str) -> Vec<Vec<&str>> {
    let mut found = Vec::new();
    for (fenced, line) in lines(text) {
        let code: Vec<&str> = if fenced { vec![line] } else { line.split('`').skip(1).step_by(2).collect() };
        for part in code.into_iter().flat_map(|code| code.split(" | ")) {
            let mut words = part.split_whitespace();
            // The program may be named by its path, and come after variables and other programs.
            if words.any(|w| w.rsplit('/').next() == Some("prover-worker")) {
                found.push(words.collect());
            }
        }
    }
    found
}

#[test]
fn every_command_in_the_readme_and_the_docs_exists() {
    let texts: Vec<(PathBuf, String)> = pages()
        .into_iter()
        .filter(|page| *page == root().join("README.md") || page.starts_with(root().join("docs")))
        .map(|page| (page.clone(), fs::read_to_string(&page).unwrap()))
        .collect();
    let (mut helps, mut tried) = (BTreeMap::<Vec<&str>, String>::new(), 0);
    for (page, text) in &texts {
        for words in commands(text) {
            let named = words.iter().copied().take_while(|w| w.bytes().all(|b| b.is_ascii_lowercase()));
            let command = match named.collect::<Vec<_>>().as_slice() {
                [group @ ("circuits" | "export" | "jobs" | "queue"), sub, ..] => vec![*group, *sub],
                [command, ..] => vec![*command],
                [] => continue,
            };
            let shown = format!("{}: prover-worker {}", page.display(), words.join(" "));
            let help = helps.entry(command.clone()).or_insert_with(|| {
                let mut program = Command::new(env!("CARGO_BIN_EXE_prover-worker"));
                let help = program.args(&command).arg("--help").output().unwrap();
                let text = String::from_utf8_lossy(&help.stdout).into_owned();
                let exists = help.status.success() && text.contains(&command.join(" "));
                assert!(exists, "{shown}: {command:?} is not a command");
                text
            });
            for flag in words.iter().filter(|w| w.starts_with("--")) {
                assert!(help.contains(flag), "{shown}: {command:?} has no {flag}");
            }
            tried += 1;
        }
    }
    assert!(tried >= 20, "expected the README and the docs to show the commands, found {tried}");
}

#[test]
fn the_images_hold_every_program() {
    let manifest = read("Cargo.toml");
    let programs: Vec<_> = manifest.split("[[bin]]").skip(1).map(|bin| bin.split('"').nth(1).unwrap()).collect();
    assert!(programs.contains(&"prover-worker"), "{programs:?}");
    for image in ["Dockerfile.cpu", "Dockerfile.cuda"] {
        let text = read(image);
        let copied = text.lines().find(|l| l.starts_with("COPY --from=build ")).unwrap();
        for program in &programs {
            assert!(copied.contains(&format!("/release/{program} ")), "{image} has no {program}: {copied}");
        }
    }
}

/// Returns the anchors of a page's headings as GitHub makes them: lower case, spaces as `-`, punctuation dropped,
/// repetitions numbered.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let headings = lines(text).filter(|(fenced, line)| !fenced && line.starts_with('#'));
    for heading in headings.map(|(_, line)| line.trim_start_matches('#').trim()) {
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, '-' | '_');
        let anchor: String = heading.to_lowercase().replace(' ', "-").chars().filter(kept).collect();
        let numbered = (1..).map(|n| format!("{anchor}-{n}"));
        let free = std::iter::once(anchor.clone()).chain(numbered).find(|anchor| !found.contains(anchor));
        found.extend(free);
    }
    found
}

#[test]
fn anchors_are_those_of_github() {
    let page = "# A page\n\n```\n# a comment\n```\n\n## On `x86_64`: AVX-512, *now*\n\n## A page\n";
    let want = ["a-page", "a-page-1", "on-x86_64-avx-512-now"];
    assert!(anchors(page).iter().eq(want), "{:?}", anchors(page));
}

#[test]
fn links_between_pages_lead_somewhere() {
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for (n, _) in text.match_indices("](") {
            let target = text[n + 2..].split(')').next().unwrap();
            if target.contains("://") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            assert!(file.exists(), "{}: {target} leads nowhere", page.display());
            if !anchor.is_empty() && file.extension().is_some_and(|e| e == "md") {
                let anchors = anchors(&fs::read_to_string(&file).unwrap());
                assert!(anchors.contains(anchor), "{}: {target}: no such heading", page.display());
            }
        }
    }
}
