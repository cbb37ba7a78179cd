"""The paper's synthetic data model (Section 4, Appendix E), made runnable: closed forms, Monte Carlo, and training.

Three classes; class i has K exclusive features x_E,i and shares K features x_C,j with each other class; all that it has
are N(μ, σ²), the rest are 0 (eq. 8; K = 1 there, K > 1 is Appendix E.5). A linear classifier with weights w₁ on what is
exclusive and w₂ on what is shared is trained adversarially with the margin loss (eq. 10), or with its label smoothed
form (eq. 13). C[i, j] = w₂² / (w₁² + 2 w₂²) (its class attributions are means, which an attack scales all alike).

Where the paper's text is inexact; ``tests/theory`` verifies each:

1. Eq. (39): the coefficient of w₁ is −(1−β)μ + (2−3β)ε; the paper's second line has lost the minus.
2. Theorem 3 needs βμ/(1−β) < σ/√π; otherwise ε₁ ≥ μ/2, and label smoothing keeps w₂ > 0 for every ε < μ/2.
3. Eq. (36): under attack x_E,2 and x_C,1 are constants, so both variances are σ², not 2σ². The pairwise probability is
   Φ((μ−2ε)(w₁+w₂) / (σ√(w₁²+w₂²))); Theorem 2's monotony is not affected.
4. The sentence after eq. (31) should call the derivative positive.
5. Theorem 2 is stated for all other classes jointly (eq. 11) and proved for one. Jointly it does not hold. With
   t = w₂/w₁ the joint probability falls as t nears 1 for every ε, since there the pairwise one is level while the
   correlation 1/(1+t²) of the two margins falls; and at t = 0 its slope has the sign of ε₀ − ε. A little w₂ helps
   robust accuracy against all classes exactly where training keeps it, below ε₀.
6. Eq. (39) puts the δ of Lemma 2 into the smoothing term as well. That δ is the worst for the margin, not for the whole
   loss (12). With the worst for the whole, the coefficient of w₁ is −(1−β)(μ−2ε); w₂ and ε₁ are the same.
7. Appendix E.5: the K shared features do not separate. Their sum has K times the variance, so σ/√π becomes σ/√(πK), and
   both thresholds rise with K.
"""

from ccf_plugin.theory.closed_forms import SyntheticModel
from ccf_plugin.theory.simulation import Estimate, estimate, train
from ccf_plugin.theory.study import Study, StudyRow, run_study

__all__ = ["Estimate", "Study", "StudyRow", "SyntheticModel", "estimate", "run_study", "train"]
