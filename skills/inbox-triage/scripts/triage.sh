#!/bin/sh
# Files one document of the inbox: event on stdin, effects on stdout.
# -f: the patterns of the rules are for comparing; the shell must not turn them into names of files.
set -euf

inbox=$AMAN_DATA/inbox
filed=$AMAN_DATA/filed
plans=$filed/.plans
plan=$plans/$AMAN_DELIVERY_ID
journal=$filed/journal.md
event=$(cat)

# The end of the name that stays the end when a number is put in: ".pdf", ".tar.gz".
parts='def parts: split(".") as $p | ($p | length) as $n
  | (if $n > 2 and $p[$n - 2] == "tar" then 2 elif $n > 1 then 1 else 0 end) as $tail
  | ($p[: $n - $tail] | join(".")) as $stem
  | if $tail == 0 or $stem == "" then {stem: ., end: ""}
    else {stem: $stem, end: ("." + ($p[$n - $tail :] | join(".")))} end;'

# Nothing is done, and that is no failure.
nothing() {
    printf '{"result": {"filed": false, "why": "%s"}}\n' "$1"
    exit 0
}

inode() {
    stat -c %d:%i -- "$1" 2>/dev/null || true
}

read_event() {
    fields=$(printf '%s\n' "$event" | "$AMAN_BIN" jq -r "$parts"'
      .data as $d
      | ([$d.name | capture("(^|[^0-9])(?<y>20[0-9][0-9])[-_.]?(?<m>0[1-9]|1[0-2])([-_.]?(0[1-9]|[12][0-9]|3[01]))?([^0-9]|$)")]
         | .[0]) as $date
      | (if $date then "\($date.y)-\($date.m)"
         else [$d.modified, .time | strings | select(test("^[0-9]{4}-[0-9]{2}-"))][0][0:7] end) as $month
      | ($d.name | parts) as $parts
      | @sh "from=\($d.path) name=\($d.name) lower=\($d.name | ascii_downcase) mime=\($d.mime // "") month=\($month)
             stem=\($parts.stem) end=\($parts.end)"')
    eval "$fields"
    case $name in '' | . | .. | */*) echo "the event names no file: $name" >&2; exit 65 ;; esac
}

# Sets kind and rule by the first rule that fits.
choose_kind() {
    rules=$AMAN_DATA/inbox-rules.txt
    [ -r "$rules" ] || rules=$AMAN_SKILL_DIR/rules.txt
    carriage_return=$(printf '\r')
    number=0
    while read -r kind field patterns || [ -n "$kind" ]; do
        number=$((number + 1))
        case $kind in '' | '#'*) continue ;; esac
        rule=${rules##*/}:$number
        case $kind in *[!a-z0-9-]* | -*) echo "$rule: '$kind' is no kind: small letters, digits, hyphens" >&2; exit 65 ;; esac
        case $field in
            name) value=$lower ;;
            mime) value=$mime ;;
            *) echo "$rule: '$field' is neither name nor mime" >&2; exit 65 ;;
        esac
        for pattern in ${patterns%"$carriage_return"}; do
            # shellcheck disable=SC2254 # it is meant to be a pattern
            case $value in $pattern) return ;; esac
        done
    done <"$rules"
    kind=other rule=none
}

# Sets number and to: the first name in the folder that is free.
choose_name() {
    folder=$filed/$kind/$month
    mkdir -p -- "$folder"
    number=0
    to=$folder/$name
    while [ -e "$to" ] || [ -L "$to" ]; do
        number=$((number + 1))
        [ "$number" -le 9999 ] || { echo "too many files are called '$name'" >&2; exit 65; }
        to=$folder/$stem-$number$end
    done
}

# Writes down what will be done: which file (by inode), the line of the journal, the effects.
write_plan() {
    data=$(printf '%s' "$AMAN_DATA" | sed 's/[\\"]/\\&/g')
    choice=$(printf '{"data": "%s", "kind": "%s", "month": "%s", "rule": "%s", "number": %d}' \
        "$data" "$kind" "$month" "$rule" "$number")
    mkdir -p -- "$plans"
    find "$plans" -type f -mtime +7 -delete
    planned=$(printf '%s\n' "$event" "$choice" | "$AMAN_BIN" jq -s -r "$parts"'
      def plain: explode | map(if . < 32 or . == 127 or . == 96 then 63 else . end) | implode;
      .[1] as $c | .[0].data as $d | ($d.name | parts) as $p
      | (if $c.number == 0 then $d.name else "\($p.stem)-\($c.number)\($p.end)" end) as $name
      | "\($c.kind)/\($c.month)/\($name)" as $place
      | "- \(.[0].time[0:16] | sub("T"; " ")) `\($d.name | plain)` → `\($place | plain)` (\($c.rule))",
        ({publish: [{type: "document.filed", data: {from: $d.path, to: "\($c.data)/filed/\($place)", kind: $c.kind,
                     rule: $c.rule, size: $d.size}}],
          result: {filed: true, to: "\($c.data)/filed/\($place)"}} | tojson)')
    printf '%s\n%s\n' "$(inode "$from")" "$planned" >"$plan.new"
    mv -f -- "$plan.new" "$plan"
}

# Reads the plan; `to` may hold line breaks, so an x guards its end.
read_plan() {
    { read -r inodes; read -r line; read -r effects; } <"$plan"
    original=${inodes%% *}
    to=$(printf '%s\n' "$effects" | "$AMAN_BIN" jq -r '.result.to + "x"')
    to=${to%x}
    beside=${to%/*}/.aman-$AMAN_DELIVERY_ID
}

# Moves without ever replacing a file, so that at any moment the whole file is at one of the two places.
move() {
    rm -f -- "$beside"
    # Where a hard link can be made, a move is a single step; elsewhere mv would copy, and leave half a file when cut off.
    if ln -- "$from" "$beside" 2>/dev/null; then
        rm -f -- "$beside"
        mv -n -- "$from" "$to" || true
        [ "$(inode "$to")" = "$original" ]
    else
        cp -p -- "$from" "$beside"
        printf '%s %s\n%s\n%s\n' "$original" "$(inode "$beside")" "$line" "$effects" >"$plan.new"
        mv -f -- "$plan.new" "$plan"
        if cmp -s -- "$from" "$beside" && mv -n -- "$beside" "$to" && [ ! -e "$beside" ]; then
            rm -f -- "$from"
        else
            rm -f -- "$beside"
            return 1
        fi
    fi
}

# Leaves the file where the plan says. Fails when the plan cannot be kept and another one is needed.
carry_out() {
    found=$(inode "$to")
    left=$(inode "$from")
    case " $inodes " in
        *" ${found:-none} "*)
            # A copy that was cut off before its original was removed.
            if [ "$left" = "$original" ] && cmp -s -- "$from" "$to"; then rm -f -- "$from"; fi
            return 0
            ;;
    esac
    if [ "$left" = "$original" ]; then
        move
    elif [ -n "$left" ]; then
        return 1
    elif [ -z "$found" ]; then
        nothing "the file is gone"
    fi
}

read_event
here=$(cd -P -- "$inbox" && pwd -P && echo x) || nothing "there is no inbox"
case $from in "$inbox"/* | "${here%?x}"/*) ;; *) nothing "the file lies outside the inbox" ;; esac

for round in 1 2 3 4 5; do
    if [ ! -s "$plan" ]; then
        if [ -L "$from" ] || [ ! -f "$from" ]; then nothing "the file is gone"; fi
        choose_kind
        if [ "$kind" = leave ]; then nothing "$rule leaves it in the inbox"; fi
        choose_name
        write_plan
    fi
    read_plan
    if carry_out; then
        [ -s "$journal" ] || printf '# What was filed\n\n' >"$journal"
        grep -qF -- "<!-- $AMAN_DELIVERY_ID -->" "$journal" || printf '%s <!-- %s -->\n' "$line" "$AMAN_DELIVERY_ID" >>"$journal"
        printf '%s\n' "$effects"
        exit 0
    fi
    echo "the plan of round $round no longer fits; planning again" >&2
    rm -f -- "$plan"
done
exit 75
