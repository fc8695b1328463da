r"""Answers that tempt a grader: wrong ones that a sloppy one accepts, right ones that a strict one refuses.

Every entry is (gold answer, completion). "[[x]]" stands for \boxed{x} here.
"""

from __future__ import annotations

import re

from upft.choices import AnswerKind

_WRONG_MATH = [
    # which statement is the answer
    ("12", "[[1]] and [[2]]"), ("3", "[[1]], [[2]]"), ("5", "First I thought [[5]], but it is [[6]]."),
    ("5", "<think>surely [[5]]</think> I cannot say."), ("5", "<think>surely [[5]]"), ("5", "<think>5\nthe answer is 5"),
    ("5", "<think>a</think>It is 4<think>or [[5]]"), ("5", r"The answer is \boxed{5"), ("5", r"\boxed{50"),
    ("1", r"thus \boxed{1"),
    ("12", r"so 12 or rather \boxed{12"), ("3", r"\boxed{\frac{3}{4}"), ("5", "[[]]"), ("5", r"[[\text{none}]] of the 5"),
    ("7", "#### 8\nI had 7 before"), ("7", "The answer is 8. There are 7 days in a week."), ("7", "The answer is not 7"),
    ("7", "The answer is 7 or 8"), ("7", "The answer is between 6 and 7"), ("7", "The answer is at least 7"),
    ("10", "A: 10\nB: 20\nThe answer: 20"), ("7", "[[7 < x]]"), ("7", "[[x > 7]]"), ("7", "[[x \\ne 7]]"), ("7", "[[> 7]]"),
    ("7", r"[[\neg 7]]"), ("7", "[[7?8]]"), ("7", "[[7...]] no: [[7.5]]"),
    # numbers
    ("16", "[[0.16]]"), ("16", "[[160]]"), ("16", "[[1.6]]"), ("16", "[[16.01]]"), ("16", "[[-16]]"),
    ("16", "[[16-]] so [[-16]]"),
    ("1000", "[[1.000,5]]"), ("1234", "[[1,23,4]]"), ("1234", "[[12,34]]"), ("1234", "[[1.234]]"), ("1234", "[[1234,5]]"),
    ("100", "[[1e3]]"), ("2500", r"[[2.5\times 10^{2}]]"), ("2500", r"[[2.5\times 10^{-3}]]"), ("25", r"[[2^5]]"),
    ("32", "[[25]]"),
    ("0", r"[[\frac{0}{0}]]"), ("0", r"[[10^{-9}]]"), ("0", "[[0.0000001]]"), ("10^{-7}", "[[0]]"),
    (r"\frac{1}{10000000}", "[[0]]"),
    (r"\frac{\sqrt{2}}{10^8}", "[[0]]"), ("1", "[[0.999999]]"), ("1", "[[1.000001]]"), ("2", "[[1.9999999]]"),
    ("1000000", "[[1000001]]"), ("123456789", "[[123456788]]"), ("12345678901234567890", "[[12345678901234567891]]"),
    ("99999999999999999999", "[[100000000000000000000]]"), ("5", "[[5i]]"), ("5", "[[5!]]"), ("120", "[[5]]"), ("5", "[[V]]"),
    ("6", "[[six]]"), ("5", "[[5 5]]"), ("55", "[[5 5]]"), ("15", "[[1 5]]"), ("2", "[[2 dozen]]"), ("3", "[[3 million]]"),
    ("7", "[[7 and a half]]"), ("7", "[[7 halves]]"), ("8", "[[8 less than 20]]"), ("8", "[[8 times as many]]"),
    ("20", "[[20 to 1]]"),
    ("3", "[[3:2]]"), ("4", "[[|-5|]]"), ("-4", "[[|-4|]]"), ("4", r"[[\sqrt{4}]]"), ("2", "[[4]]"), ("9", r"[[9\pi]]"),
    # fractions, mixed numbers, percent, approximations
    (r"\frac{2}{3}", r"[[\frac{3}{2}]]"), (r"\frac{2}{3}", "[[0.67]]"), (r"\frac{2}{3}", "[[0.66]]"),
    (r"\frac{2}{3}", "[[0.6667]]"),
    (r"\frac{2}{3}", "[[66.7%]]"), (r"\frac{2}{3}", "[[23]]"), (r"\frac{12}{5}", r"[[12\frac{1}{5}]]"),
    (r"\frac{14}{3}", "[[4/3]]"),
    (r"4\frac{2}{3}", r"[[\frac{8}{3}]]"), ("4 2/3", "[[8/3]]"), (r"2\frac{1}{2}", "[[1]]"),
    (r"-\frac{5}{2}", r"[[-2+\frac12]]"),
    ("-1.5", r"[[-2\frac{1}{2}]]"), ("-0.5", r"[[-1\frac12]]"), ("1/2", "[[2/1]]"), ("1/2", "[[1:3]]"), ("0.25", "[[25]]"),
    ("25", "[[0.25%]]"),
    ("25%", "[[25.5%]]"), ("25%", "[[2.5]]"), ("12.5", "[[125%]]"), (r"\pi", "[[3.14]]"), (r"\pi", "[[3.14159]]"),
    (r"\sqrt{2}", "[[1.41]]"), (r"\sqrt{2}", "[[1.4142]]"), (r"2\sqrt{3}", r"[[3\sqrt{2}]]"), (r"2\sqrt{3}", r"[[\sqrt{6}]]"),
    (r"\sqrt[3]{8}", "[[3]]"),
    (r"\frac{\pi}{6}", "[[30]]"), (r"\frac{\pi}{6}", r"[[\frac{6}{\pi}]]"), ("e", "[[2.718]]"), (r"\ln 2", "[[0.69]]"),
    (r"\ln 2", r"[[\log_{2} 10]]"),
    # units
    (r"5\text{ cm}", r"[[5\text{ m}]]"), (r"5\text{ cm}", "[[5 km]]"), ("3 hours", "[[3 minutes]]"),
    (r"90^\circ", r"[[90\text{ rad}]]"),
    (r"10\text{ kg}", "[[10 g]]"), ("5 km", "[[500 m]]"), (r"12\text{ cm}^2", r"[[12\text{ cm}^3]]"),
    # intervals, sets, tuples, lists
    ("(0,1)", "[[[0,1]]]"), ("[0,1)", "[[(0,1]]]"), ("[0,1]", "[[(0,1)]]"), ("(0,1)", "[[(1,0)]]"),
    (r"(0,\infty)", r"[[(-\infty,0)]]"),
    (r"(0,\infty)", r"[[[0,\infty)]]"), (r"(-\infty,1)\cup(2,\infty)", r"[[(-\infty,1)\cap(2,\infty)]]"),
    (r"(-\infty,1)\cup(2,\infty)", r"[[(-\infty,1]\cup[2,\infty)]]"), (r"(-\infty,1)\cup(2,\infty)", r"[[(-\infty,1)]]"),
    (r"[2,5]", "[[2,5]]"),
    (r"[2,5]", r"[[\{2,5\}]]"), (r"\{2,5\}", "[[(2,5)]]"), (r"\{1,2,3\}", r"[[\{1,2,3,4\}]]"), (r"\{1,2,3\}", r"[[\{1,2\}]]"),
    (r"\{1,2,3\}", "[[6]]"),
    ("1,2,3", "[[1,2]]"), ("1,2,3", "[[3]]"), ("1,2,3", "[[123]]"), ("2,3", "[[2 and 3 and 4]]"), ("2,-3", "[[2]]"),
    ("2,-3", "[[-2,3]]"), ("(1,2,3)", "[[(3,2,1)]]"),
    ("(1,2,3)", "[[(1,2)]]"), ("(1,-2)", "[[(1,2)]]"), (r"(\frac12,3)", r"[[(2,3)]]"), (r"\emptyset", r"[[\{0\}]]"),
    ("x=1,y=2", "[[x=2,y=1]]"), (r"\pm 3", "[[3]]"),
    (r"\pm 3", "[[-3]]"), (r"3\pm\sqrt{2}", r"[[3+\sqrt{2}]]"), (r"1\pm i", "[[1-i]]"), (r"x\le 3", "[[x<3]]"),
    (r"x\le 3", r"[[x\ge 3]]"), (r"2<x<5", "[[2<x<6]]"),
    # expressions
    ("x^2", "[[2x]]"), ("2x", "[[x^2]]"), ("x+1", "[[x]]"), ("x+y", "[[xy]]"), ("x-y", "[[y-x]]"), ("(x+1)^2", "[[x^2+1]]"),
    ("x^2-1", "[[(x-1)^2]]"),
    ("2^{10}", "[[20]]"), ("2^{10}", "[[2^9]]"), ("2^{n}", "[[2n]]"), ("n!", "[[n]]"), ("y=2x+1", "[[y=2x-1]]"),
    ("y=2x+1", "[[x=2y+1]]"), ("x=5", "[[y=5]]"), ("x_1", "[[x_2]]"),
    (r"\sin x", r"[[\cos x]]"), (r"\sin x", "[[x]]"), (r"\log_2 3", r"[[\log_3 2]]"), (r"\tan 2x", r"[[2\tan x]]"),
    ("3+4i", "[[4+3i]]"), ("3+4i", "[[3-4i]]"), ("3+4i", "[[5]]"), ("3+4i", "[[7i]]"),
    ("1010_2", "[[1010_3]]"), ("1010_2", "[[10]]"), ("x^2+y^2=4", "[[x^2+y^2=2]]"), ("x^2+y^2=4", "[[x^2-y^2=4]]"),
    # matrices
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"[[\begin{pmatrix}1&3\\2&4\end{pmatrix}]]"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"[[\begin{pmatrix}2\\1\end{pmatrix}]]"),
    (r"\begin{pmatrix}1&0\\0&1\end{pmatrix}", r"[[\begin{pmatrix}1&0\\0&-1\end{pmatrix}]]"),
    (r"\begin{pmatrix}1&0\\0&1\end{pmatrix}", "[[1]]"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"[[\begin{pmatrix}1\\2\\0\end{pmatrix}]]"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "[[1,2,3,4]]"), (r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", "[[2]]"),
    # words
    ("Evelyn", r"[[7\text{Evelyn}]]"), ("even", "[[2 even]]"), ("ellipse", r"[[\text{ellipse}^2]]"),
    ("Tuesday", "[[Thursday]]"), ("yes", "[[no]]"), ("increasing", "[[decreasing]]"), ("odd", "[[even and odd]]"),
    ("Monday", "[[not Monday]]"), ("listen", "[[silent]]"), ("red", "[[red, blue]]"), ("Alice", "[[Alice and Bob]]"),
    (r"\text{east}", r"[[\text{northeast}]]"), ("parabola", "[[hyperbola]]"), (r"\text{undefined}", "[[0]]"),
    (r"\text{June 20}", r"[[\text{June 21}]]"), ("6:00", "[[6:30]]"),
]
_WRONG_CHOICE = [
    ("A", "A large part of it decays."), ("A", "The answer is a good one."), ("A", "The answer is A large molecule."),
    ("I", "I think so."), ("B", "The answer is not B."), ("B", "Answer: A or B"), ("B", "The answer is B or C"),
    ("B", "The answer is either B or C"), ("B", "(A) 1\n(B) 2"), ("D", "A. 1\nB. 2\nC. 3\nD. 4"), ("C", "It needs vitamin C"),
    ("C", "The answer is vitamin C"), ("B", "The answer is B. Wait, it is wrong: the answer is C."),
    ("C", "The answer is C = 5"),
    ("D", "The answer is D_4h"), ("C", "Answer: CO2"), ("C", "Answer: C-13"), ("B", "[[C]]"), ("B", "[[A]] and so [[B, C]]"),
    ("B", r"\boxed{B"), ("B", "<think>(B), clearly: the answer is B"), ("B", "<think>The answer is B.</think>"),
    ("B", "Option B is incorrect."),
    ("B", "The wrong answer is B"), ("A", "[[a cat]]"), ("B", "**A**"), ("B", "B is not correct. I choose D."),
    ("B", "Both (A) and (B) hold."), ("E", "E is the energy."), ("B", "We rule out (B)."),
    ("C", "If C is correct then the answer is D."), ("A", "Answer: All of them"),
    ("B", "10 B"), ("F", "The force is F"), ("A", "[[2A]]"), ("C", "25 °C"), ("B", "Which is larger, A or B?"), ("B", ""),
]
_WRONG_SCIENCE = [
    ("10^-4 eV", "[[10^{-5} eV]]"), ("10^-4 eV", "[[10^{4} eV]]"), ("10^-4 eV", "[[10^{-4} J]]"),
    ("10^-4 eV", "[[10^{-4} keV]]"), ("2.5 m", "[[2.5 cm]]"), ("2.5 m", "[[25 m]]"), ("2.5 m", "[[2.6 m]]"),
    ("2.5 m", "[[3 m]]"), ("2.50", "[[2.51]]"),
    ("1.24", "[[1.2]]"), ("1.24", "[[1.246]]"), ("5 m/s", "[[5 m s]]"), ("5 m/s", "[[5 km/h]]"), ("3 K", "[[3 kg]]"),
    ("CO", "[[Co]]"), ("H2O", "[[H2O2]]"), ("3-methylpyrrolidine", "[[2-methylpyrrolidine]]"), ("4", "[[5]]"),
    ("11", "[[11.4]]"), ("6.3e5", r"[[6.3\times 10^{6}]]"),
    ("0.85c", "[[0.58c]]"), ("-1.3", "[[1.3]]"), ("~12", "[[13]]"), ("300 nm", r"[[300\ \mu m]]"),
    ("(R)-limonene", "[[(S)-limonene]]"), ("mitosis", "[[meiosis]]"), ("1/2", "[[1/3]]"), ("7.5 N", "[[7.5 J]]"),
]
_RIGHT_MATH = [
    # where the answer stands
    ("16", "[[016]]"), ("5", "[[4]] was my guess, but [[5]]"), ("5", "[[5]] and that is all, after 12 steps."),
    ("5", r"\boxed{\boxed{5}}"), ("5", r"$$\boxed{5}$$ dollars"), ("5", r"\fbox{5}"), ("5", r"\boxed 5"),
    ("5", r"\boxed{ 5 }."), ("5", r"\\boxed{5}"),
    ("5", "\x08oxed{5}"), ("5", r"\boxed{5} and then \boxed{}"), ("5", r"\boxed{5} cut in \boxed{\frac{1"),
    ("5", "<think>[[4]]?</think>\n[[5]]"), ("5", "[[4]]?</think> The answer is 5."),
    ("5", "<think>a</think><think>b [[6]]</think> [[5]]"), ("5", "#### 5"), ("5", "#### $5.00"),
    ("5", "The answer is 5."), ("5", "the answer is: 5"), ("5", "Answer: 5"), ("5", "**Answer**: 5 apples"),
    ("5", "**Final Answer**\n\n5"), ("5", "### Answer\n5"), ("5", "Final answer: $5$"),
    ("5", "The final answer is $5$. I hope it is correct."), ("5", "The answer is therefore 5"),
    ("5", "Thus, the answer is **5**."), ("5", "A: 5"), ("5", "Her 3 hens lay 2 eggs each, one breaks.\nA: 5"),
    ("18", "So the answer is that she has 18 apples left."), ("5", "She has 5"), ("5", "It takes 2 + 3 = 5 hours."),
    ("-3", "it falls to -3"), ("1234", "they pay $1,234 in all"), ("70000", "a profit of $70,000.00."),
    (r"\frac{1}{2}", r"The answer is \[ \frac{1}{2} \]"), (r"\frac{1}{2}", "The answer is\n\\[\n\\frac{1}{2}\n\\]"),
    (r"\frac{3}{4}", r"Therefore, $x = \frac{3}{4}$."), (r"\frac{3}{4}", r"so \(x=\frac{3}{4}\)"),
    (r"2\sqrt{3}", r"We find $AB = 2\sqrt{3}$."), ("50", "so it is 50%"), ("3/4", "about 3/4 of it"),
    # numbers
    ("1234", "[[1,234]]"), ("1234", "[[1 234]]"), ("1234", r"[[1\,234]]"), ("1234", r"[[1{,}234]]"),
    ("1000000", "[[1,000,000.00]]"), ("2000000", "[[2 million]]"), ("24", "[[2 dozen]]"), ("5", "[[+5]]"), ("5", "[[5.]]"),
    ("5", "[[05.0]]"), ("0.5", "[[.5]]"), ("-5", "[[−5]]"), ("-5", "[[-$5]]"), ("2500", r"[[2.5\times10^3]]"),
    ("2500", "[[2.5e3]]"),
    ("2500", r"[[2.5 \cdot 10^{3}]]"), ("2500", "[[2.5×10³]]"), ("0.00012", "[[1.2e-4]]"), ("1024", "[[2^{10}]]"),
    ("6", "[[3!]]"), ("2", r"[[\sqrt{4}]]"), ("5", "[[|{-5}|]]"), ("5", "[[2+3]]"), ("18", "[[x = 18]]"),
    ("18", r"[[n=18\text{ coins}]]"), ("18", r"[[\$18]]"), ("18", "[[18 dollars]]"), ("18", "[[18 square units]]"),
    ("18", r"[[18\text{ cm}^2]]"), ("18", r"[[18\,\mathrm{m/s}]]"), ("18", "[[18°]]"), ("18", r"[[18^\circ]]"),
    ("18", "[[€18]]"),
    ("18", r"[[\mathbf{18}]]"), ("18", r"[[\displaystyle 18]]"), ("18", r"[[18\ \text{per day}]]"), ("9", "[[ 9 ]]"),
    # fractions, mixed numbers, percent
    ("0.5", r"[[\frac12]]"), ("0.5", "[[1/2]]"), ("0.5", "[[½]]"), ("2.5", "[[2½]]"), ("2.5", r"[[2\frac12]]"),
    ("2.5", "[[2 1/2]]"), (r"\frac{14}{3}", "[[4 2/3]]"), (r"\frac{14}{3}", r"[[4\tfrac{2}{3}]]"),
    (r"-\frac{5}{2}", r"[[-2\frac{1}{2}]]"), ("-2.5", "[[-2 1/2]]"), (r"-\frac{1}{3}", r"[[\frac{-1}{3}]]"),
    (r"-\frac{1}{3}", r"[[\frac{1}{-3}]]"), (r"\frac{2}{3}", r"[[\frac{4}{6}]]"), (r"\frac{2}{3}", r"[[\cfrac{2}{3}]]"),
    (r"\frac{2}{3}", "[[0.666667]]"),
    (r"\frac{2}{3}", "[[0.6666666]]"), (r"\frac{1}{6}", "[[0.166667]]"), (r"\frac{3}{7}", r"[[{3}/{7}]]"),
    (r"\frac{9}{2}", r"[[\left(\frac{9}{2}\right)]]"), ("50", r"[[50\%]]"), ("50%", "[[0.5]]"), ("0.5", "[[50%]]"),
    ("50%", "[[50 percent]]"), (r"\frac{3}{8}", "[[0.375]]"), (r"\frac{\sqrt{2}}{2}", r"[[\frac{1}{\sqrt{2}}]]"),
    (r"2\sqrt{5}", r"[[\sqrt{20}]]"), (r"\frac{\pi}{2}", r"[[\pi/2]]"), (r"\frac{\pi}{2}", "[[π/2]]"), ("8\\pi", "[[8pi]]"),
    (r"\sqrt[3]{2}", "[[2^{1/3}]]"),
    # units
    (r"5\text{ cm}", "[[5]]"), (r"5\text{ cm}", "[[5 centimeters]]"), ("5", "[[5 cm]]"), (r"5\text{ cm}", "[[50 mm]]"),
    ("3 hours", "[[3]]"), (r"90^\circ", "[[90 degrees]]"), ("2 km", "[[2000 m]]"),
    # intervals, sets, tuples, lists
    ("(0,1)", r"[[\left(0,1\right)]]"), ("[0,1)", "[[ [0, 1) ]]"), (r"(-\infty,1)\cup(2,\infty)", "[[(-∞,1)∪(2,∞)]]"),
    (r"(-\infty,1)\cup(2,\infty)", r"[[(2,\infty)\cup(-\infty,1)]]"), (r"[2,5]", r"[[x\in[2,5]]]"),
    (r"\{1,2,3\}", r"[[\{3,2,1\}]]"), (r"\{1,2,3\}", "[[{1, 2, 3}]]"), (r"\{1,2,3\}", "[[1, 2, 3]]"), ("1,2,3", "[[3,1,2]]"),
    ("2,3", "[[2 and 3]]"), ("2,-3", r"[[x=2 \text{ or } x=-3]]"), ("2,-3", "[[x=-3, x=2]]"), ("(1,2)", "[[(1, 2)]]"),
    ("(1,2)", "[[(1.0, 2.0)]]"),
    (r"(\frac12,3)", "[[(1/2, 3)]]"), (r"(\frac12,3)", "[[(0.5, 3)]]"), (r"3\pm\sqrt{2}", r"[[3-\sqrt2, 3+\sqrt2]]"),
    (r"\pm 3", "[[3, -3]]"), (r"\pm 3", "[[±3]]"), (r"\emptyset", r"[[\varnothing]]"), (r"x\le 3", "[[x≤3]]"),
    (r"x\le 3", r"[[x\leq 3]]"), (r"x\le 3", r"[[3\ge x]]"),
    # expressions
    ("x^2+2x+1", "[[(x+1)^2]]"), ("x^2-1", "[[(x-1)(x+1)]]"), ("2x+2", "[[2(x+1)]]"), ("x+y", "[[y+x]]"),
    ("y=2x+1", "[[2x+1]]"), ("2x+1", "[[y = 1 + 2x]]"), ("y=2x+1", "[[2x - y + 1 = 0]]"), ("3+4i", "[[4i+3]]"),
    ("n(n+1)", "[[n^2+n]]"), (r"\frac{x+1}{2}", r"[[\frac{1}{2}(x+1)]]"), (r"\frac{x}{2}", "[[x/2]]"), ("x^{10}", "[[x^10]]"),
    (r"\sin^2 x", r"[[(\sin x)^2]]"), (r"\log_{2} 3", r"[[\log_2 3]]"), ("2^{n+1}", r"[[2\cdot 2^n]]"),
    ("5x^2", r"[[5 \cdot x^2]]"), ("a+b", r"[[\mathbf{a}+\mathbf{b}]]"), ("1010_2", "[[1010_{2}]]"), ("1010_2", "[[1010₂]]"),
    ("x^2+y^2=4", "[[4=x^2+y^2]]"), ("120", r"[[\binom{10}{3}]]"), (r"\frac{1}{e}", "[[e^{-1}]]"),
    # matrices
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"[[\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}]]"),
    (r"\begin{pmatrix}1/2\\2\end{pmatrix}", r"[[\begin{pmatrix} \frac12 \\ 2 \end{pmatrix}]]"),
    (r"\begin{pmatrix}1\\-2\end{pmatrix}", r"[[\left(\begin{array}{c}1\\-2\end{array}\right)]]"),
    # words
    ("Tuesday", r"[[\text{Tuesday}]]"), ("Tuesday", "[[tuesday.]]"), (r"\text{Alice}", "The answer is Alice."),
    ("yes", r"[[\textbf{Yes}]]"), ("ellipse", "[[an ellipse]]"), ("east", r"[[\mathrm{East}]]"), (r"\text{(C)}", "[[C]]"),
    (r"\text{June 20}", "[[June 20]]"), ("6:00", "[[6:00]]"), ("neither", "[[\\text{neither}]]"),
]
_RIGHT_CHOICE = [
    ("B", "(B)"), ("B", "[[B]]"), ("B", r"[[\text{(B)}]]"), ("B", "Answer: B"), ("B", "the answer is B."), ("B", "**B**"),
    ("B", "B) 5 m/s"), ("B", "B. The mass doubles"), ("B", "The correct option is (B)."), ("B", "**Answer: B**"),
    ("B", "**Answer:** (B) 5 m/s"), ("B", "I would choose option B"), ("B", "Option B is correct."),
    ("B", "The answer is A. Wait, actually the answer is B."),
    ("A", "The answer is A because the mass doubles."), ("A", "Answer: A"), ("A", "[[A]]"), ("(C)", "The answer is C"),
    ("C", r"$\boxed{\textbf{(C) } 5}$"), ("C", "[[C. 5]]"), ("B", "A. 1\nB. 2\nC. 3\nD. 4\n\nAnswer: B"),
    ("B", "<think>maybe the answer is C</think>The answer is B"), ("b", "answer: b"), ("B", "Answer is \"B\""),
    ("B", "ANSWER: B"), ("B", "The final answer is: $\\boxed{B}$"), ("D", "### Answer\nD"), ("D", "Correct answer: d)"),
    ("B", "So, all in all, (B)."), ("B", "The answer is B, not C."), ("B", "[[B]] (and not [[D"), ("C", "`C`"),
    ("J", "The answer is (J)."),
]
_RIGHT_SCIENCE = [
    ("10^-4 eV", r"[[10^{-4}\ \text{eV}]]"), ("10^-4 eV", "[[1e-4 eV]]"), ("10^-4 eV", r"[[1\times10^{-4}]]"),
    ("10^-4 eV", "[[0.1 meV]]"), ("10^-4 eV", "The answer is 10⁻⁴ eV."), ("10^-4 eV", r"[[\sim 10^{-4}\,\mathrm{eV}]]"),
    (r"2.5 \times 10^{3}", "[[2500]]"), (r"2.5 \times 10^{3}", "[[2.5e3]]"), (r"2.5 \times 10^{3}", "[[2.51e3]]"),
    ("2.5 keV", "[[2500 eV]]"), ("1.24", "[[1.242]]"), ("1.24", r"[[\approx 1.24]]"), ("1.24", "[[~1.24]]"),
    ("5 m/s", r"[[5\ \mathrm{m\,s^{-1}}]]"), ("5 m/s", "[[18 km/h]]"), ("300 nm", r"[[0.3\ \mu m]]"), ("12 Å", "[[1.2 nm]]"),
    ("12 Angstrom", r"[[12\ \text{\AA}]]"), ("H2O", r"[[\mathrm{H_2O}]]"),
    ("3-methylpyrrolidine", "The answer is 3-methyl pyrrolidine."), ("mitosis", "[[Mitosis]]"), ("0.85c", r"[[0.85\,c]]"),
    ("4", "[[4]]"), ("11", "so there are 11"), ("1/2", "[[0.5]]"), ("x^2+1", "[[1+x^2]]"),
    ("the mitochondrion", "[[Mitochondrion]]"),
    ("6.3e5", r"[[6.3 \cdot 10^{5}]]"), ("-1.3", "[[-1.32]]"), ("~12", "[[12.3]]"), ("3 hours", "[[180 min]]"),
]


def _written(kind: AnswerKind, entries: list[tuple[str, str]]) -> list[tuple[AnswerKind, str, str]]:
    return [(kind, gold, re.sub(r"\]\](?!\])", "}", text.replace("[[", "\\boxed{"))) for gold, text in entries]


WRONG = [*_written(AnswerKind.math, _WRONG_MATH), *_written(AnswerKind.choice, _WRONG_CHOICE),
         *_written(AnswerKind.science, _WRONG_SCIENCE)]
RIGHT = [*_written(AnswerKind.math, _RIGHT_MATH), *_written(AnswerKind.choice, _RIGHT_CHOICE),
         *_written(AnswerKind.science, _RIGHT_SCIENCE)]
