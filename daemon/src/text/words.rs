//! Words of any script: as the full-text index takes them, and folded, so that texts can be compared word by word.

use std::collections::BTreeSet;

use unicode_normalization::UnicodeNormalization;

/// Stands between characters of scripts that put no spaces between words, so that each is a word to the index.
pub const GAP: char = '\u{200b}';
/// Stands before what was found, in the fields that the database gives.
pub const MARK: char = '\u{1}';
/// Words shorter than this are looked for as they are, without what they could go on to.
const PREFIX_CHARS_MIN: usize = 4;

/// The words that are looked for in `text`. One without a letter or digit is none to the index, and would find nothing.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control() || c == '"');
    words.filter(|word| word.chars().any(char::is_alphanumeric))
}

/// An expression of the index that wants every word of `text`: each a phrase whose last word may go on, once. Empty when
/// there is no word.
pub fn all_of(text: &str) -> String {
    let words: BTreeSet<String> = words(text).map(|word| spaced(word).to_lowercase()).collect();
    words.iter().map(|word| format!("\"{word}\"*")).collect::<Vec<_>>().join(" ")
}

/// An expression that wants one of the first `words_max` words of `text`; the more of them, the better it fits.
pub fn any_of(text: &str, words_max: usize) -> String {
    let mut seen = BTreeSet::new();
    let fresh = words(text).map(|word| spaced(word).to_lowercase()).filter(|word| seen.insert(word.clone()));
    let phrase = |word: String| {
        let star = if word.chars().filter(|c| c.is_alphanumeric()).count() < PREFIX_CHARS_MIN { "" } else { "*" };
        format!("\"{word}\"{star}")
    };
    fresh.take(words_max).map(phrase).collect::<Vec<_>>().join(" OR ")
}

/// `text` with gaps around each character of a script that puts no spaces between words.
pub fn spaced(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars().filter(|c| !matches!(*c, GAP | MARK | '\0')) {
        if is_a_word(c) {
            out.extend([GAP, c, GAP]);
        } else {
            out.push(c);
        }
    }
    out
}

/// The words of `text` with one space before, between and after them: case, diacritics, width and punctuation make no
/// difference any more, so ` a b ` is in it exactly if the text has these words in this order, next to each other. Nothing
/// but the space when there is no word.
pub fn folded(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push(' ');
    for c in text.nfkd().flat_map(char::to_lowercase) {
        if is_unseen(c) {
            continue;
        }
        if is_a_word(c) {
            end_word(&mut out);
            out.push(c);
            out.push(' ');
        } else if let Some(plain) = undecomposed(c) {
            out.push_str(plain);
        } else if c.is_alphanumeric() || unicode_normalization::char::is_combining_mark(c) {
            out.push(c);
        } else {
            end_word(&mut out);
        }
    }
    end_word(&mut out);
    out
}

fn end_word(out: &mut String) {
    if !out.ends_with(' ') {
        out.push(' ');
    }
}

/// What nobody sees, and marks that many leave out: diacritics of Latin, Greek and Cyrillic, vowels of Arabic and Hebrew.
/// Vowel signs of other scripts are as good as letters.
fn is_unseen(c: char) -> bool {
    matches!(u32::from(c),
        0x00ad | 0x0300..=0x036f | 0x0591..=0x05bd | 0x05bf | 0x05c1..=0x05c2 | 0x05c4..=0x05c5 | 0x05c7
        | 0x0640 | 0x064b..=0x065f | 0x0670 | 0x1ab0..=0x1aff | 0x1dc0..=0x1dff | 0x200b..=0x200f | 0x2060..=0x2064
        | 0x20d0..=0x20ff | 0xfe00..=0xfe0f | 0xfe20..=0xfe2f | 0xfeff)
}

/// Letters that Unicode takes for whole, and people for a letter with something to it.
fn undecomposed(c: char) -> Option<&'static str> {
    Some(match c {
        'ß' => "ss",
        'æ' => "ae",
        'œ' => "oe",
        'ø' => "o",
        'ł' => "l",
        'đ' | 'ð' => "d",
        'þ' => "th",
        'ħ' => "h",
        'ı' => "i",
        'ς' => "σ",
        _ => return None,
    })
}

/// Thai, Lao, Myanmar, Khmer, kana and ideographs: their scripts are written without spaces between words.
fn is_a_word(c: char) -> bool {
    matches!(u32::from(c),
        0x0e00..=0x0eff | 0x1000..=0x109f | 0x1780..=0x17ff | 0x3040..=0x30ff | 0x31f0..=0x31ff
        | 0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff | 0xff66..=0xff9d | 0x2_0000..=0x3_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_folded_to_their_words() {
        for (text, wanted) in [
            ("", " "),
            ("?!", " "),
            ("Hello, WORLD!", " hello world "),
            ("credit_card/e-mail", " credit card e mail "),
            ("Ärger über Straße", " arger uber strasse "),
            ("ﬁn ＡＢＣ İstanbul", " fin abc istanbul "),
            ("so\u{ad}ft zero\u{200b}width", " soft zerowidth "),
            ("Ёлка ΣΊΣΥΦΟΣ", " елка σισυφοσ "),
            ("日本 ok", " 日 本 ok "),
            ("が", " か \u{3099} "),
            ("कि", " कि "),
            ("שָׁלוֹם", " שלום "),
        ] {
            assert_eq!(folded(text), wanted, "{text}");
        }
    }

    #[test]
    fn expressions_hold_no_syntax_of_the_index() {
        assert_eq!(all_of("b \"a OR\" b*"), "\"a\"* \"b\"* \"b*\"* \"or\"*");
        assert_eq!(any_of("The invoices, the", 9), "\"the\" OR \"invoices,\"*");
        assert_eq!(any_of("a b c", 2), "\"a\" OR \"b\"");
        assert_eq!(all_of("- !"), "");
    }
}
