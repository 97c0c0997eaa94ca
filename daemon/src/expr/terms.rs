//! Walking over parsed terms.

use jaq_core::load::lex::StrPart;
use jaq_core::load::parse::{BinaryOp, Pattern, Term};
use jaq_core::path::{Part, Path};

/// Calls `f` with every part of `term`, not with the parts of those.
pub(super) fn children<'s>(term: &mut Term<&'s str>, f: &mut dyn FnMut(&mut Term<&'s str>)) {
    match term {
        Term::Id | Term::Recurse | Term::Num(_) | Term::Break(_) | Term::Var(_) | Term::Arr(None) => {}
        Term::Str(_, parts) => parts.iter_mut().for_each(|part| {
            if let StrPart::Term(term) = part {
                f(term);
            }
        }),
        Term::Arr(Some(inner)) | Term::Neg(inner) | Term::Label(_, inner) => f(inner),
        Term::Obj(entries) => entries.iter_mut().for_each(|(key, value)| {
            f(key);
            value.iter_mut().for_each(&mut *f);
        }),
        Term::BinOp(l, op, r) => {
            f(l);
            if let BinaryOp::Pipe(Some(pattern)) = op {
                pattern_keys(pattern, f);
            }
            f(r);
        }
        Term::Fold(_, xs, pattern, args) => {
            f(xs);
            pattern_keys(pattern, f);
            args.iter_mut().for_each(f);
        }
        Term::TryCatch(body, catch) => {
            f(body);
            catch.iter_mut().for_each(|catch| f(catch));
        }
        Term::IfThenElse(branches, otherwise) => {
            branches.iter_mut().for_each(|(condition, then)| {
                f(condition);
                f(then);
            });
            otherwise.iter_mut().for_each(|otherwise| f(otherwise));
        }
        Term::Def(defs, body) => {
            defs.iter_mut().for_each(|def| f(&mut def.body));
            f(body);
        }
        Term::Call(_, args) => args.iter_mut().for_each(f),
        Term::Path(head, Path(parts)) => {
            f(head);
            parts.iter_mut().for_each(|(part, _)| match part {
                Part::Index(index) => f(index),
                Part::Range(from, upto) => from.iter_mut().chain(upto).for_each(&mut *f),
            });
        }
    }
}

fn pattern_keys<'s>(pattern: &mut Pattern<&'s str>, f: &mut dyn FnMut(&mut Term<&'s str>)) {
    match pattern {
        Pattern::Var(_) => {}
        Pattern::Arr(parts) => parts.iter_mut().for_each(|part| pattern_keys(part, f)),
        Pattern::Obj(entries) => entries.iter_mut().for_each(|(key, part)| {
            f(key);
            pattern_keys(part, f);
        }),
    }
}

/// Calls `f` with the name and the number of arguments of every call in `term`, at any depth.
pub(super) fn calls(term: &Term<&str>, f: &mut dyn FnMut(&str, usize)) {
    walk(&mut term.clone(), f);
}

fn walk(term: &mut Term<&str>, f: &mut dyn FnMut(&str, usize)) {
    match term {
        Term::Call(name, args) => f(name, args.len()),
        Term::Str(Some(format), _) => f(format, 0),
        _ => {}
    }
    children(term, &mut |child| walk(child, f));
}
