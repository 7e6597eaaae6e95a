"""What strangers named can be shown: it neither breaks lines nor drives the terminal."""

import pytest

from featurecache import terminal

HOSTILE = (
    "[red]x[/] [/] \x1b[31m\x1b]8;;http://a\x07 a\r\nb \u202egpj.exe\u2066 \udcff \x9b31m\u2028"
)


def test_hostile_names_are_shown_escaped(capsys):
    row = {"class": HOSTILE, "n": 1}
    terminal.table([row], title=HOSTILE)
    out = capsys.readouterr().out
    assert all(char.isprintable() or char == "\n" for char in out)
    assert out.count(r"[red]x[/] [/] \x1b[31m\x1b]8;;http://a\x07 a\r\nb \u202egpj.exe") == 2
    assert "\\udcff" in out and "\\x9b31m" in out


@pytest.mark.parametrize("text", ["café 猫 ネコ", "न\u200dक्ष", "👩\u200d🔬", r"a\b [x]", ""])
def test_names_that_people_write_stay(text):
    assert terminal.printable(text) == text
