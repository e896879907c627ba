"""Figures of score fields, paths, schedules, samples and errors, for notebooks and reports.

Every function that looks at a model takes a score callable `score(x, t)`: an exact one, a trained
one, or any vector field of your own. Axes or a Figure come back, so that all of matplotlib can be
used on them; one that is passed as ``ax`` is drawn into. Figures are transparent, with text and
lines in tones that stand out on light pages and on dark ones; a sampler has the same colour
everywhere. Needs the extra `plot`; nothing of it is imported before a figure is drawn.
"""

from score_sde.plotting.charts import image_grid as image_grid
from score_sde.plotting.charts import plot_convergence as plot_convergence
from score_sde.plotting.charts import plot_schedule as plot_schedule
from score_sde.plotting.fields import plot_map as plot_map
from score_sde.plotting.fields import plot_points as plot_points
from score_sde.plotting.fields import plot_score_field as plot_score_field
from score_sde.plotting.judging import plot_errors_over_noise as plot_errors_over_noise
from score_sde.plotting.judging import plot_sweep as plot_sweep
from score_sde.plotting.laboratory import plot_over_noise as plot_over_noise
from score_sde.plotting.laboratory import plot_spectrum as plot_spectrum
from score_sde.plotting.motion import animate as animate
from score_sde.plotting.motion import explore_score_field as explore_score_field
from score_sde.plotting.paths import plot_marginals as plot_marginals
from score_sde.plotting.paths import plot_trajectories as plot_trajectories
from score_sde.plotting.style import PlottingError as PlottingError
from score_sde.plotting.style import sampler_style as sampler_style
from score_sde.plotting.style import subplots as subplots
from score_sde.sampling import record_trajectory as record_trajectory
