//! The documentation against the code: tables that are made from the code's catalogues, commands that exist, links that
//! lead somewhere.

#![allow(clippy::unwrap_used)]

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

/// The Markdown files of the project.
fn pages() -> Vec<PathBuf> {
    let folders = [".", "docs", "docs/gpu", "circuits", "kernels"].map(|d| root().join(d));
    let entries = folders.iter().filter_map(|d| fs::read_dir(d).ok()).flatten();
    let mut pages: Vec<_> =
        entries.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "md")).collect();
    pages.sort();
    pages
}

/// docs/reference.md as the code would have it. `UPDATE_DOCS=1` writes it.
#[test]
fn the_reference_is_made_from_the_code() {
    let want = format!(
        "# Reference\n\nMade from the code by `UPDATE_DOCS=1 cargo test --test docs`.\n\n## Environment\n\nAn empty \
         variable counts as unset. A value that does not read as it should is an error at start.\n\n{}\n## Metrics\n\n\
         On `/metrics`, in Prometheus' text format.\n\n{}",
        config::markdown_table(),
        telemetry::markdown_table()
    );
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(root().join("docs/reference.md"), &want).unwrap();
    }
    assert!(read("docs/reference.md") == want, "docs/reference.md is stale: UPDATE_DOCS=1 cargo test --test docs");
}

/// Every route of the API, and every class of error that a job may have.
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
        // What a legend shows, the expression must keep.
        for label in legend.split("{{").skip(1).filter_map(|part| part.split("}}").next()) {
            let kept = expr.split("by (").skip(1).filter_map(|part| part.split(')').next());
            assert!(kept.flat_map(|labels| labels.split(", ")).any(|l| l == label), "{label} is not in {expr}");
            assert!(known.contains(&label), "{label} is no label: {legend}");
        }
        n += 1;
    }
    assert!(n >= 28, "{n} expressions");
}

/// Every name in an expression of Prometheus' is a metric's, and every text a label's value or a variable of the dashboard's.
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

/// First cells, without their ticks, of the table whose first column is headed `head`.
fn rows(text: &str, head: &str) -> Vec<String> {
    let mut lines = text.lines().skip_while(|l| !l.starts_with(&format!("| {head} |")));
    assert!(lines.next().is_some(), "no table of {head}s");
    let rows = lines.skip(1).take_while(|l| l.starts_with('|'));
    let names: Vec<_> = rows.map(|l| l.split('|').nth(1).unwrap().trim().trim_matches('`').to_owned()).collect();
    assert!(!names.is_empty(), "an empty table of {head}s");
    names
}

#[test]
fn every_command_in_the_readme_exists() {
    let readme = read("README.md");
    let mut tried = 0;
    for line in readme.lines().map(str::trim) {
        let Some(rest) = line.strip_prefix("prover-worker ") else { continue };
        let words: Vec<&str> =
            rest.split_whitespace().take_while(|w| w.bytes().all(|b| b.is_ascii_lowercase())).collect();
        let command = match words.as_slice() {
            [group @ ("circuits" | "export" | "jobs" | "queue"), sub, ..] => vec![*group, *sub],
            [command, ..] => vec![*command],
            [] => continue,
        };
        let help = Command::new(env!("CARGO_BIN_EXE_prover-worker")).args(&command).arg("--help").output().unwrap();
        let text = String::from_utf8_lossy(&help.stdout).into_owned();
        assert!(help.status.success() && text.contains(&command.join(" ")), "{line}: {command:?} is no command");
        for flag in rest.split_whitespace().filter(|w| w.starts_with("--")) {
            assert!(text.contains(flag), "{line}: {command:?} has no {flag}");
        }
        tried += 1;
    }
    assert!(tried >= 10, "expected the README to show the commands, found {tried}");
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

#[test]
fn links_between_pages_lead_somewhere() {
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for (n, _) in text.match_indices("](") {
            let target = text[n + 2..].split(')').next().unwrap();
            let path = target.split('#').next().unwrap();
            if target.contains("://") || path.is_empty() {
                continue;
            }
            assert!(page.parent().unwrap().join(path).exists(), "{}: {target} leads nowhere", page.display());
        }
    }
}
