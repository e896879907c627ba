"""A page in the browser to draw samples, look into score fields, and compare runs."""

from score_sde.explorer.page import explore as explore
