#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

/// The bytes 0 to 31.
const COUNTING: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn base64_of(fill: u8) -> String {
    STANDARD.encode([fill; KEY])
}

fn ring(spec: &str) -> Keyring {
    Keyring::parse(spec).unwrap()
}

fn job() -> JobId {
    JobId(Uuid::from_u128(0x0190b1a2_c3d4_7e5f_8a6b_7c8d9e0f1a2b))
}

fn refused(spec: &str) -> String {
    let error = Keyring::parse(spec).unwrap_err();
    assert!(matches!(error, SealError::Spec { .. }), "{error}");
    error.to_string()
}

/// Computed by another implementation (Python, checked against the example of draft-irtf-cfrg-xchacha). If this fails,
/// the sealed inputs in databases can no longer be opened.
#[test]
fn the_sealed_format_is_as_it_ever_was() {
    let ring = ring(&format!("k1:{COUNTING}"));
    let nonce: [u8; NONCE] = std::array::from_fn(|i| 100 + i as u8);
    let plain = br#"{"a":"3","b":"11"}"#;
    let sealed = seal_with(&ring.keys[0], &nonce, job(), plain).unwrap();
    let known = "6465666768696a6b6c6d6e6f707172737475767778797a7b07519892c50cbaa0ab12ff1d9c4d8cf8\
                 79c6a82ef7721e3f4aa3a7b86b8d13f53ed0";
    assert_eq!(hex::encode(&sealed[..]), known);
    assert_eq!(ring.open(job(), "k1", Zeroizing::new(hex::decode(known).unwrap())).unwrap()[..], plain[..]);
}

#[test]
fn the_hashes_of_bodies_are_as_they_ever_were() {
    let parts: [&[u8]; 3] = [b"idem", b"circuit", br#"{"a":"3"}"#];
    let keyed: ContentHash = "9a7f0d54afa5ec3531a8f8f8d3d4f7b59404be14a1d2c271c046dc58d42bee56".parse().unwrap();
    let plain: ContentHash = "9afc3162c8cebefcf5e6a78a63ac22f8c53de083b6cdae0e063146ec966839f4".parse().unwrap();
    assert_eq!(Keyring::none().body_hashes(&parts), (plain, vec![]));
    assert_eq!(ring(&format!("k1:{COUNTING}")).body_hashes(&parts), (keyed, vec![plain]));
}

#[test]
fn a_repeat_is_recognised_after_a_change_of_keys() {
    let parts: [&[u8]; 2] = [b"key", b"body"];
    let (old, new) = (base64_of(1), base64_of(2));
    let (before, _) = ring(&format!("a:{old}")).body_hashes(&parts);
    let (now, former) = ring(&format!("b:{new},a:{old}")).body_hashes(&parts);
    assert_ne!(now, before);
    assert_eq!(former, [before, plain_hash(&parts)]);
    let (other, others) = ring(&format!("b:{new},a:{old}")).body_hashes(&[b"key", b"bodz"]);
    assert!(other != now && others.iter().all(|h| !former.contains(h)));
}

#[test]
fn no_two_lists_of_parts_have_one_hash() {
    for ring in [Keyring::none(), ring(&format!("a:{}", base64_of(1)))] {
        let lists: [&[&[u8]]; 5] = [&[b"ab", b"c"], &[b"a", b"bc"], &[b"abc"], &[b"abc", b""], &[]];
        let mut hashes: Vec<_> = lists.iter().map(|l| ring.body_hashes(l).0).collect();
        hashes.sort();
        hashes.dedup();
        assert_eq!(hashes.len(), lists.len());
    }
}

#[test]
fn keys_are_read_in_any_base64_and_the_first_seals() {
    let odd = [0xfb; KEY];
    let (padded, url) = (STANDARD.encode(odd), URL_SAFE.encode(odd));
    assert!(padded.contains('+') && url.contains('-'), "the two alphabets differ here");
    let bare = padded.trim_end_matches('=');
    for spec in [&padded, &url, bare, url.trim_end_matches('=')] {
        let parsed = ring(&format!(" new.2026_01-x:{spec} , old:{COUNTING}"));
        assert_eq!(*parsed.keys[0].key, odd);
        assert_eq!(parsed.names().collect::<Vec<_>>(), ["new.2026_01-x", "old"]);
        assert_eq!(parsed.seal(job(), b"x").unwrap().key, "new.2026_01-x");
    }
    assert!(Keyring::parse(&format!("{}:{COUNTING}", "n".repeat(32))).is_ok());
}

#[test]
fn a_bad_list_of_keys_is_refused_and_never_quoted() {
    let good = format!("a:{COUNTING}");
    let short = STANDARD.encode([7; 31]);
    let long = STANDARD.encode([7; 33]);
    let cases = [
        (String::new(), "nothing in entry 1"),
        (format!("{good},"), "nothing in entry 2"),
        (COUNTING.to_owned(), "no colon in entry 1"),
        (format!("{COUNTING}:a"), "a name that is not"),
        (format!(":{COUNTING}"), "a name that is not"),
        (format!("{}:{COUNTING}", "n".repeat(33)), "a name that is not"),
        (format!("na me:{COUNTING}"), "a name that is not"),
        (format!("é:{COUNTING}"), "a name that is not"),
        (format!("a:{short}"), "a key of 31 bytes in entry 1"),
        (format!("{good},b:{long}"), "a key of 33 bytes in entry 2"),
        ("a:".to_owned(), "a key of 0 bytes"),
        (format!("a:{COUNTING}x"), "a key that is not base64"),
        (format!("a:{COUNTING}\n{COUNTING}"), "a key that is not base64"),
        ("a:AAECAwQFBgcICQoLDA0OD-+REhMUFRYXGBkaGxwdHh8=".to_owned(), "a key that is not base64"),
        ("a:hunter2hunter2".to_owned(), "in entry 1"),
        (format!("{good},b:{COUNTING},a:{COUNTING}"), "the same name in entries 1 and 3"),
    ];
    for (spec, why) in cases {
        let said = refused(&spec);
        assert!(said.contains(why), "expected {why:?} of {spec:?}, got {said:?}");
        assert!(!said.contains("AAECAw") && !said.contains("hunter") && !said.contains("BwcHB"), "{said}");
    }
}

#[test]
fn debug_output_shows_names_only() {
    let ring = ring(&format!("first:{COUNTING},second:{}", base64_of(9)));
    assert_eq!(format!("{ring:?}"), r#"["first", "second"]"#);
    let sealed = Keyring::none().seal(job(), b"hunter2").unwrap();
    assert_eq!(format!("{sealed:?}"), r#"Sealed { key: "", bytes: 7 }"#);
}

#[test]
fn without_keys_inputs_stay_in_the_clear_and_open_with_and_without_keys() {
    let sealed = Keyring::none().seal(job(), b"input").unwrap();
    assert_eq!((sealed.key.as_str(), &sealed.bytes[..]), ("", &b"input"[..]));
    assert!(!Keyring::none().seals());
    for ring in [Keyring::none(), ring(&format!("a:{COUNTING}"))] {
        assert_eq!(ring.open(job(), "", sealed.bytes.clone()).unwrap()[..], b"input"[..]);
    }
}

#[test]
fn a_key_that_is_missing_is_named() {
    let sealed = ring(&format!("old:{COUNTING}")).seal(job(), b"input").unwrap();
    let error = ring(&format!("new:{COUNTING},newer:{COUNTING}")).open(job(), &sealed.key, sealed.bytes.clone());
    let error = error.unwrap_err();
    assert_eq!(error, SealError::UnknownKey { name: "old".to_owned(), known: "new, newer".to_owned() });
    assert!(error.to_string().contains(r#""old", which PROVER_ENCRYPTION_KEYS lacks (it has new, newer)"#), "{error}");
    let error = Keyring::none().open(job(), &sealed.key, sealed.bytes).unwrap_err();
    assert_eq!(error, SealError::UnknownKey { name: "old".to_owned(), known: "none".to_owned() });
}

#[test]
fn an_input_opens_for_its_own_job_and_key_only() {
    let both = ring(&format!("a:{COUNTING},b:{COUNTING},c:{}", base64_of(5)));
    let sealed = both.seal(job(), b"input").unwrap();
    assert_eq!(both.open(JobId::new(), "a", sealed.bytes.clone()), Err(SealError::Damaged));
    // The same key under another name is another key.
    assert_eq!(both.open(job(), "b", sealed.bytes.clone()), Err(SealError::Damaged));
    assert_eq!(both.open(job(), "c", sealed.bytes.clone()), Err(SealError::Damaged));
    assert_eq!(both.open(job(), "a", sealed.bytes).unwrap()[..], b"input"[..]);
}

#[test]
fn no_two_seals_are_alike() {
    let ring = ring(&format!("a:{COUNTING}"));
    let (one, two) = (ring.seal(job(), b"input").unwrap(), ring.seal(job(), b"input").unwrap());
    assert_ne!(one.bytes[..NONCE], two.bytes[..NONCE]);
    assert_ne!(one.bytes[NONCE..], two.bytes[NONCE..]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_is_sealed_opens_and_hides_its_text(plain in proptest::collection::vec(any::<u8>(), 0..5000), id: u128) {
        let ring = ring(&format!("a:{COUNTING}"));
        let job = JobId(Uuid::from_u128(id));
        let sealed = ring.seal(job, &plain).unwrap();
        prop_assert_eq!(sealed.bytes.len(), NONCE + plain.len() + TAG);
        if plain.len() >= 16 {
            prop_assert!(!sealed.bytes.windows(16).any(|w| w == &plain[..16]));
        }
        let opened = ring.open(job, &sealed.key, sealed.bytes).unwrap();
        prop_assert_eq!(&opened[..], &plain[..]);
    }

    #[test]
    fn any_change_is_noticed(
        plain in proptest::collection::vec(any::<u8>(), 0..200),
        at: prop::sample::Index,
        bit in 0_u8..8,
    ) {
        let ring = ring(&format!("a:{COUNTING}"));
        let mut sealed = ring.seal(job(), &plain).unwrap();
        let at = at.index(sealed.bytes.len());
        sealed.bytes[at] ^= 1 << bit;
        prop_assert_eq!(ring.open(job(), "a", sealed.bytes), Err(SealError::Damaged));
    }

    #[test]
    fn no_part_of_it_opens(plain in proptest::collection::vec(any::<u8>(), 0..100), end: prop::sample::Index) {
        let ring = ring(&format!("a:{COUNTING}"));
        let mut sealed = ring.seal(job(), &plain).unwrap();
        let end = end.index(sealed.bytes.len());
        sealed.bytes.truncate(end);
        prop_assert_eq!(ring.open(job(), "a", sealed.bytes), Err(SealError::Damaged));
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in ".{0,200}") {
        let _ = Keyring::parse(&text);
    }
}
